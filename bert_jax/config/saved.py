"""Reads saved configurations of this and earlier versions."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from etils import epath

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.errors import UserError
from bert_jax.fields import Plain, build
from bert_jax.json_values import typed
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.storage import read_json
from bert_jax.tasks.protocol import settings
from bert_jax.train.optimizers import Optimizer

T = TypeVar("T")

# Fields that have moved: old path to new path.
RENAMED = {
    **{
        f"model.{name}": f"numerics.{name}"
        for name in (
            "hidden_dropout",
            "attention_dropout",
            "compute_dtype",
            "attention",
            "scan_layers",
            "remat",
        )
    },
    "data.masking": "masking.name",
    "data.masked_lm_prob": "masking.masked_lm_prob",
    "data.max_predictions_per_seq": "masking.max_predictions_per_seq",
    "optimizer.poly_power": "optimizer.schedule.power",
}
# Moved fields of a phase, which once had eight fields of its own.
RENAMED_IN_PHASES = {
    "batch_size": "data.batch_size",
    "max_seq_length": "data.max_seq_length",
    "max_examples_per_row": "data.max_examples_per_row",
    "max_predictions_per_seq": "masking.max_predictions_per_seq",
    "learning_rate": "optimizer.learning_rate",
    "warmup_steps": "optimizer.warmup_steps",
    "gradient_accumulation": "optimizer.gradient_accumulation",
}


def migrate(fields: Mapping[str, Any]) -> Plain:
    """Converts nested plain values of a configuration of any version to this version's."""
    new: Plain = copy.deepcopy(dict(fields))
    if isinstance(optimizer := new.get("optimizer"), dict) and "poly_power" in optimizer:
        new["optimizer"] = _separate_optimizer(optimizer)
    _rename(new, RENAMED)
    phases = new.get("phases")
    for phase in phases if isinstance(phases, list | tuple) else ():
        _rename(phase, RENAMED_IN_PHASES)
    task = new.get("task")
    if isinstance(task, dict) and isinstance(task.get("options"), dict):
        options = task.pop("options")
        # Defaults that were None are now empty values.
        task |= {name: value for name, value in options.items() if value is not None}
    return new


def _rename(fields: Plain, renamed: Mapping[str, str]) -> None:
    for old, new in renamed.items():
        *groups, name = old.split(".")
        group: Any = fields
        for each in groups:
            group = group.get(each) if isinstance(group, dict) else None
        if not isinstance(group, dict) or name not in group:
            continue
        value = group.pop(name)
        if groups and not group:
            del fields[groups[0]]
        *groups, name = new.split(".")
        group = fields
        for each in groups:
            if not isinstance(group.get(each), dict):
                group[each] = {"name": group[each]} if each in group else {}
            group = group[each]
        group[name] = value


def _separate_optimizer(fields: Plain) -> Plain:
    """Splits the fields that all optimizers and schedules once shared; each keeps its own."""
    power = fields.pop("poly_power")
    if fields.get("schedule") == "poly":
        fields["schedule"] = {"name": "poly", "power": power}
    if fields.get("name") == "sgd" and "b1" in fields:
        fields["momentum"] = fields.pop("b1")
    kind = Optimizer.kind(fields.get("name", ""), "config.optimizer.name")
    return {k: v for k, v in fields.items() if k == "name" or k in kind.__dataclass_fields__}


def read_pretrain_config(path: epath.Path) -> PretrainConfig:
    """Reads back the `config.json` of a pretraining run."""
    return _read(PretrainConfig, path, read_json(path))


def read_finetune_config(path: epath.Path) -> FinetuneConfig:
    """Reads back the `config.json` of a fine-tuning run."""
    fields = read_json(path)
    if not is_finetuning(fields):
        raise UserError(f"{path}: not the config of a fine-tuning run")
    return _read(
        FinetuneConfig, path, typed(fields["finetune"], dict[str, Any], f"{path}: finetune")
    )


def is_finetuning(fields: Mapping[str, Any]) -> bool:
    """Whether the fields of a `config.json` are those of a fine-tuning run."""
    return "finetune" in fields


def read_model_config(path: epath.Path) -> tuple[Architecture, Numerics, tuple[str, ...]]:
    """The model and the names of its classes, from the `config.json` of any workdir."""
    fields = migrate(read_json(path))
    with _errors_of(path):
        labels = typed(fields.get("labels", []), list[str], "labels")
        return *model_config(fields), tuple(labels)


def read_task(path: epath.Path) -> Plain | None:
    """The task of a fine-tuned model, from the `config.json` of any workdir; None without one.

    It has the fields of a `Task` that predictions depend on, as plain values.
    """
    fields = read_json(path)
    task = fields.get("task")
    if task is None and isinstance(run := fields.get("finetune"), dict):
        task = migrate(run).get("task")  # of versions that did not write it apart
    if task is None:
        return None
    return settings(typed(task, dict[str, Any], f"{path}: task"))


def model_config(fields: Mapping[str, Any]) -> tuple[Architecture, Numerics]:
    """The model in the migrated fields of a configuration."""
    architecture = build(Architecture, fields.get("model"), "config.model")
    return architecture, build(Numerics, fields.get("numerics", {}), "config.numerics")


def _read(cls: type[T], path: epath.Path, fields: Mapping[str, Any]) -> T:
    with _errors_of(path):
        return build(cls, migrate(fields))


@contextlib.contextmanager
def _errors_of(path: epath.Path) -> Iterator[None]:
    """Prefixes the message of a UserError with the path of the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error

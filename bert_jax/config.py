"""Configuration: from a config file and command-line overrides to frozen, validated dataclasses.

A config file is a page of Python with `get_config(arg=None) -> ConfigDict`. `load_config` reads it,
applies `--config.a.b=value` and checks everything once; the rest of the code sees only the frozen
dataclasses below. Every message names the field.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import operator
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from bert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of the model; see `bert_jax.model.bert.Bert`.

    `attention` is "xla", "splash" (a TPU kernel, which has no dropout) or "auto", which takes
    splash on TPUs for long rows where nothing is dropped.
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_act: str
    position_embedding: str
    hidden_dropout: float
    attention_dropout: float
    layer_norm_eps: float
    initializer_range: float
    compute_dtype: str
    attention: str
    scan_layers: bool
    remat: str


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a batch holds.

    Attributes:
      store: directory that `bert-jax prepare` wrote, or one of pre-masked TFRecords, for which
        packing must be off and pairs, short_seq_prob, masking and masked_lm_prob have no effect.
      batch_size: rows of the global batch.
      max_seq_length: tokens of a row.
      pairs: "nsp" (next sentence), "sop" (sentence order) or "none" (full sentences, MLM only).
      short_seq_prob: share of examples drawn shorter than the row.
      packing: several examples in a row, or one.
      max_examples_per_row: with packing, at most so many.
      masking: "token", "whole_word" or "span".
      masked_lm_prob: share of tokens to predict.
      max_predictions_per_seq: at most so many predictions in an example.
    """

    store: str
    batch_size: int
    max_seq_length: int
    pairs: str
    short_seq_prob: float
    packing: bool
    max_examples_per_row: int
    masking: str
    masked_lm_prob: float
    max_predictions_per_seq: int

    @property
    def examples_per_row(self) -> int:
        """Static number of examples that a row has room for."""
        return self.max_examples_per_row if self.packing else 1

    @property
    def max_predictions_per_row(self) -> int:
        """Static number of predictions that the examples of a row can need together."""
        if not self.packing:
            return self.max_predictions_per_seq
        share, shortest = self.masked_lm_prob, 3  # [CLS] token [SEP]
        lengths = range(shortest, self.max_seq_length + 1)
        # What rounding and "at least one" add at most to the share of one example.
        excess = max(max(1, round(share * length)) - share * length for length in lengths)
        worst = math.floor(share * self.max_seq_length + excess * self.max_examples_per_row)
        return min(worst, self.max_predictions_per_seq * self.max_examples_per_row)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its learning rate; see `bert_jax.train.optimizers`.

    Attributes:
      name: "adamw", "lamb", "adafactor" or "sgd".
      learning_rate: the highest.
      warmup_steps: in which it rises from 0.
      schedule: "linear", "poly", "cosine", "rsqrt" or "constant".
      poly_power: of "poly".
      b1: decay of the first moment of adamw and lamb; momentum of sgd.
      b2, eps: of adamw and lamb; adafactor has its own constants.
      bias_correction: of adamw; lamb always corrects.
      weight_decay: decoupled; biases and LayerNorm are spared.
      clip_norm: global norm to which gradients are clipped; 0 does not clip.
      gradient_accumulation: microbatches of a batch.
    """

    name: str
    learning_rate: float
    warmup_steps: int
    schedule: str
    poly_power: float
    b1: float
    b2: float
    eps: float
    bias_correction: bool
    weight_decay: float
    clip_norm: float
    gradient_accumulation: int


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Layout of the computation; see `bert_jax.parallel.rules`.

    Attributes:
      data, fsdp, tensor: sizes of the mesh axes; one may be -1 and takes the rest of the devices.
      zero1: split optimizer state and fp32 parameters over the data axis too.
    """

    data: int
    fsdp: int
    tensor: int
    zero1: bool


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """What a phase of a run sets in place of the fields of the same name; see `PHASE_FIELDS`."""

    steps: int
    batch_size: int
    max_seq_length: int
    max_examples_per_row: int
    max_predictions_per_seq: int
    learning_rate: float
    warmup_steps: int
    gradient_accumulation: int


# Field of a phase -> the group of the field that it stands for.
PHASE_FIELDS = {
    "steps": "",
    "batch_size": "data.",
    "max_seq_length": "data.",
    "max_examples_per_row": "data.",
    "max_predictions_per_seq": "data.",
    "learning_rate": "optimizer.",
    "warmup_steps": "optimizer.",
    "gradient_accumulation": "optimizer.",
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every training run has: all that a compiled step depends on beside its task.

    Attributes:
      seed: of parameters, batches, masks and dropout.
      rng: generator of dropout, "threefry" (the same on every mesh) or "rbg" (cheap on TPU).
      steps: optimizer steps of the whole run; with a budget, at most so many.
      budget_hours: the schedule ends, and so does the run, when so much time is spent; 0 is off.
    """

    model: ModelConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    seed: int
    rng: str
    steps: int
    budget_hours: float


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """A pretraining run.

    Attributes:
      init_from: weights to start from, anything that `bert_jax.load` reads; empty is random.
      init_missing_heads: let heads that `init_from` lacks start at random.
      phases: one after another; without any the whole run is one phase, of the fields above.
      target_mlm_accuracy: the run ends at the first evaluation that reaches it; 0 is off.
      target_rows: rows in which a reference reaches the target, to compare with; 0 is unknown.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations on held-out documents; 0 evaluates at the end only.
      eval_batches: batches of an evaluation; 0 takes every held-out document.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_checkpoints: how many of the newest to keep.
    """

    data: DataConfig
    init_from: str
    init_missing_heads: bool
    phases: tuple[PhaseConfig, ...]
    target_mlm_accuracy: float
    target_rows: int
    log_every: int
    eval_every: int
    eval_batches: int
    checkpoint_every: int
    keep_checkpoints: int

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict, as in `config.json`."""
        return dataclasses.asdict(self)

    def stages(self) -> tuple["Stage", ...]:
        """The phases as configs of their own; the whole config where there are none."""
        if not self.phases:
            return (Stage("", 0, self),)
        stages, first_step = [], 0
        for index, phase in enumerate(self.phases):
            groups: dict[str, dict[str, Any]] = {"": {}, "data.": {}, "optimizer.": {}}
            for name, group in PHASE_FIELDS.items():
                groups[group][name] = getattr(phase, name)
            config = dataclasses.replace(
                self,
                phases=(),
                data=dataclasses.replace(self.data, **groups["data."]),
                optimizer=dataclasses.replace(self.optimizer, **groups["optimizer."]),
                **groups[""],
            )
            stages.append(Stage(f"phases[{index}]", first_step, config))
            first_step += phase.steps
        return tuple(stages)

    def stage_of(self, step: int) -> "Stage":
        """The stage that the state after `step` steps was trained in."""
        return next(stage for stage in self.stages() if step <= stage.last_step)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What to learn from which examples.

    Attributes:
      name: "classification", "tagging", "answering", a task of GLUE, "glue/sst2", or MODULE:CLASS
        of your own; see `bert_jax.tasks.protocol.Task`.
      train, dev, test: files or `tfds:NAME:SPLIT`; `test` may be empty.
      test_labelled: the labels of `test` are known, so that it is scored and not only predicted.
      max_seq_length: tokens of an example; longer ones are cut, or windowed where every token
        counts.
      options: of the task; the fields of its class.
    """

    name: str
    train: str
    dev: str
    test: str
    test_labelled: bool
    max_seq_length: int
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """The fields of `ModelConfig` that trained weights leave open."""

    hidden_dropout: float
    attention_dropout: float
    compute_dtype: str
    attention: str
    scan_layers: bool
    remat: str


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run, or one for each of several seeds.

    Attributes:
      init_from: the trained model, anything that `bert_jax.load` reads.
      random_weights: take shape and vocabulary of `init_from`, but not its weights.
      freeze: train only what lies on top of the encoder (pooler and head).
      layer_decay: the learning rate of a layer is that of the one above times this; the head has
        `optimizer.learning_rate`.
      reinit_layers: so many of the top layers start at random, and the pooler too (Zhang et al.
        2021, https://arxiv.org/abs/2006.05987).
      optimizer: `warmup_steps` 0 takes `warmup_share` of all steps.
      seed: of the head, the order of examples and dropout; the first of `seeds` that follow it.
      rng: as in `RunConfig`.
      batch_size: examples of a step.
      packing: several short examples in a row, which computes the same in less time.
      epochs: times that each example is seen.
      evals_per_epoch: evaluations, with a checkpoint each.
      log_every: steps between lines of metrics.
    """

    task: TaskConfig
    init_from: str
    random_weights: bool
    freeze: bool
    layer_decay: float
    reinit_layers: int
    model: ComputeConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    seed: int
    seeds: int
    rng: str
    batch_size: int
    packing: bool
    epochs: float
    warmup_share: float
    evals_per_epoch: int
    log_every: int

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict, as in `config.json`."""
        return dataclasses.asdict(self)


class Stage(NamedTuple):
    """A stretch of a run with batches of one shape and a schedule of its own.

    Attributes:
      name: "phases[0]", say; empty where the run has no phases.
      first_step: steps of the run before it.
      config: without phases; its `steps` are those of the stage.
    """

    name: str
    first_step: int
    config: Config

    @property
    def last_step(self) -> int:
        """Steps of the run when the stage is over."""
        return self.first_step + self.config.steps

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Makes a UserError about the stage's config name the fields that the user wrote."""
        try:
            yield
        except UserError as error:
            message = str(error)
            for name, group in PHASE_FIELDS.items() if self.name else ():
                message = message.replace(f"config.{group}{name}", f"config.{self.name}.{name}")
            raise UserError(message) from error


CHOICES = {
    "model.hidden_act": ("gelu", "gelu_tanh"),
    "model.position_embedding": ("learned", "sinusoidal"),
    "model.compute_dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "xla", "splash"),
    "model.remat": ("none", "dots", "full"),
    "data.pairs": ("nsp", "sop", "none"),
    "data.masking": ("token", "whole_word", "span"),
    "optimizer.name": ("adamw", "lamb", "adafactor", "sgd"),
    "optimizer.schedule": ("linear", "poly", "cosine", "rsqrt", "constant"),
    "rng": ("threefry", "rbg"),
}
POSITIVE = (
    "model.vocab_size",
    "model.num_layers",
    "model.hidden_size",
    "model.num_heads",
    "model.intermediate_size",
    "model.max_position_embeddings",
    "model.type_vocab_size",
    "model.layer_norm_eps",
    "model.initializer_range",
    "data.batch_size",
    "data.max_examples_per_row",
    "data.max_predictions_per_seq",
    "task.max_seq_length",
    "batch_size",
    "epochs",
    "evals_per_epoch",
    "seeds",
    "layer_decay",
    "optimizer.learning_rate",
    "optimizer.eps",
    "optimizer.poly_power",
    "optimizer.gradient_accumulation",
    "steps",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
)
NOT_NEGATIVE = (
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "eval_every",
    "eval_batches",
    "budget_hours",
    "target_rows",
    "reinit_layers",
    "seed",
)
# Probabilities in [0, 1); dropping or masking everything leaves nothing to learn from.
FRACTIONS = (
    "model.hidden_dropout",
    "model.attention_dropout",
    "data.short_seq_prob",
    "data.masked_lm_prob",
    "optimizer.b1",
    "optimizer.b2",
    "target_mlm_accuracy",
    "warmup_share",
)


def load_config(arguments: Sequence[str]) -> Config:
    """Reads `--config=FILE.py[:arg]` and `--config.field=value` overrides.

    Args:
      arguments: the command-line arguments that concern the config, nothing else.

    Raises:
      UserError: the file is missing or broken, a field unknown, of a wrong type or out of range.
    """
    return build_config(_load_fields(arguments))


def load_finetune_config(arguments: Sequence[str]) -> FinetuneConfig:
    """As `load_config`, of a fine-tuning run."""
    return build_finetune_config(_load_fields(arguments))


def _load_fields(arguments: Sequence[str]) -> ConfigDict:
    path = _config_path(arguments)
    # A recipe may import the recipe beside it, as a script can import its neighbours.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        recipe = _parse(path, [a for a in arguments if not a.startswith("--config.")], {})
        types = _override_types(recipe, arguments)
        fields = _parse(path, arguments, types)
    finally:
        sys.path.pop(0)
    for name, group in PHASE_FIELDS.items() if fields.get("phases") else ():
        if f"--config.{group}{name}" in types:
            raise UserError(
                f"config.{group}{name}: every phase has its own: set config.phases[0].{name}"
            )
    return fields


def build_config(fields: Mapping[str, Any]) -> Config:
    """Checks nested plain values and freezes them.

    Raises:
      UserError: names the first field that is unknown, missing, of a wrong type or out of range.
    """
    config = _freeze(Config, fields, "")
    for stage in config.stages():
        with stage.errors():
            _check(stage.config)
    total = config.stages()[-1].last_step
    if config.steps != total:
        raise UserError(
            f"config.steps={config.steps}, but the steps of config.phases sum to {total}: "
            f"change those of a phase, as in --config.phases[0].steps=1000"
        )
    if config.phases and config.budget_hours:
        raise UserError(
            f"config.budget_hours={config.budget_hours} does not go with config.phases: "
            f"set it to 0, or config.phases to ()"
        )
    return config


def build_model_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Checks the fields of a model alone and freezes them; raises as `build_config` does."""
    model = _freeze(ModelConfig, fields, "model.")
    _check_values(model, "model.")
    _check_model(model)
    return model


def build_finetune_config(fields: Mapping[str, Any]) -> FinetuneConfig:
    """As `build_config`, of a fine-tuning run."""
    config = _freeze(FinetuneConfig, fields, "")
    _check_values(config)
    _check_run(config)
    if not config.init_from:
        raise UserError("config.init_from is empty: name the directory of a trained model")
    if config.layer_decay > 1:
        raise UserError(f"config.layer_decay must be at most 1, not {config.layer_decay}")
    for name in ("train", "dev"):
        if not getattr(config.task, name):
            raise UserError(f"config.task.{name} is empty: name a file or tfds:NAME:SPLIT")
    if config.batch_size % config.optimizer.gradient_accumulation:
        raise UserError(
            f"config.batch_size={config.batch_size} is not a multiple of "
            f"config.optimizer.gradient_accumulation={config.optimizer.gradient_accumulation}"
        )
    return config


def read_config(path: Any) -> Config:
    """Reads back the `config.json` of a workdir.

    Args:
      path: an `epath.Path` or `pathlib.Path`.
    """
    fields = read_json(path)
    with _errors_of(path):
        return build_config(fields)


def read_json(path: Any) -> dict[str, Any]:
    """The object in a JSON file of a run or model.

    Args:
      path: an `epath.Path` or `pathlib.Path`.

    Raises:
      UserError: no such file, or it holds something else.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; is {path.parent} the directory of a run or model?")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); the file is damaged") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: a JSON object is due, not {type(fields).__name__}")
    return fields


def read_model_config(path: Any) -> tuple[ModelConfig, tuple[str, ...]]:
    """The model and the names of its classes, from the `config.json` of any directory of ours.

    Args:
      path: an `epath.Path` or `pathlib.Path`.
    """
    fields = read_json(path)
    with _errors_of(path):
        labels = fields.get("labels", [])
        if not isinstance(labels, list):
            raise UserError(f"labels must be a list of names, not {labels!r}")
        return build_model_config(fields.get("model", {})), tuple(labels)


@contextlib.contextmanager
def _errors_of(path: Any) -> Iterator[None]:
    """Puts the path of the file before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines "field: old -> new" for every leaf that differs."""
    lines = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{name}.")
        elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
            lines += differences(_by_index(name, before), _by_index(name, after), prefix)
        elif before != after:
            lines.append(f"{prefix}{name}: {before!r} -> {after!r}")
    return lines


def _by_index(name: str, items: Sequence[Any]) -> dict[str, Any]:
    return {f"{name}[{index}]": item for index, item in enumerate(items)}


def _config_path(arguments: Sequence[str]) -> Path:
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            if not equals:
                value = arguments[index + 1] if index + 1 < len(arguments) else ""
            path = Path(value.split(":")[0])
            if not path.is_file():
                raise UserError(f"--config={value}: no such file; recipes are in configs/")
            return path
    raise UserError("--config=FILE.py is missing; recipes are in configs/")


def _parse(path: Path, arguments: Sequence[str], types: Mapping[str, type]) -> ConfigDict:
    """The ConfigDict of the config file at `path` with its overrides, which have these types."""
    values = flags.FlagValues()
    arguments = ["bert-jax", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        unused = values(arguments)[1:]
        config = values.config
    except flags.UnrecognizedFlagError as error:
        raise UserError(
            f"unknown flag --{error.flagname}: overrides look like --config.steps=1000"
        ) from error
    except flags.Error as error:
        # "flag --config.steps=ten: reason"; of a traceback in it, the last line is the reason.
        first, *more = str(error).removeprefix("flag ").splitlines()
        flag = first.partition(": ")[0]
        name, _, value = flag.partition("=")
        if name in types:
            expected = types[name].__name__
            raise UserError(f"{name[2:]} must be {expected}, not {value!r}") from error
        raise UserError(f"{flag}: {more[-1]}" if more else first) from error
    except Exception as error:  # a config file is code: it can raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {type(error).__name__}: {reason}") from error
    finally:
        # The next config file that is read would find the names of this one in its module.
        sys.modules.pop("config_config", None)
    if unused:
        raise UserError(f"unexpected argument {unused[0]!r}; see --help")
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"{path}: get_config() must return a ConfigDict, not {kind}")
    return config


def _override_types(recipe: ConfigDict, arguments: Sequence[str]) -> dict[str, type]:
    """Flag -> type of the field that it overrides; an error says which field may be meant."""
    types = {}
    for argument in arguments:
        flag = argument.partition("=")[0]
        if not flag.startswith("--config."):
            continue
        field, path = recipe, flag.removeprefix("--config.").split(".")
        for depth, part in enumerate(path):
            name, bracket, index = part.rstrip("]").partition("[")
            if not isinstance(field, ConfigDict) or name not in field:
                known = list(field) if isinstance(field, ConfigDict) else []
                raise UserError(_no_such_field(".".join([*path[:depth], name]), known))
            field = field[name]
            if bracket:
                items = field if isinstance(field, tuple) else ()
                if not index.isdecimal() or int(index) >= len(items):
                    raise UserError(f"config.{name}[{index}]: config.{name} has {len(items)} items")
                field = items[int(index)]
        if isinstance(field, ConfigDict):
            raise UserError(f"{flag[2:]} is a group: set its fields, {', '.join(field)}")
        types[flag] = type(field)
    return types


def _no_such_field(path: str, known: Sequence[str]) -> str:
    prefix, _, name = path.rpartition(".")
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"{prefix}.{close[0]}".lstrip(".") if close else ""
    return f"config.{path}: no such field" + (f"; did you mean config.{meant}?" if meant else "")


def _freeze(cls: type, fields: Any, prefix: str) -> Any:
    if isinstance(fields, ConfigDict):
        fields = fields.to_dict()
    if not isinstance(fields, Mapping):
        group = f"config.{prefix}"[:-1]
        raise UserError(f"{group} must be a group of fields, not {fields!r}")
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in types:
            raise UserError(_no_such_field(f"{prefix}{name}", list(types)))
    values = {}
    for name, expected in types.items():
        if name not in fields:
            raise UserError(f"config.{prefix}{name} is missing: set it in the config file")
        value = fields[name]
        if typing.get_origin(expected) is dict:
            values[name] = value.to_dict() if isinstance(value, ConfigDict) else dict(value)
            continue
        if dataclasses.is_dataclass(expected):
            values[name] = _freeze(expected, value, f"{prefix}{name}.")
            continue
        if typing.get_origin(expected) is tuple and isinstance(value, list | tuple):
            item = typing.get_args(expected)[0]
            values[name] = tuple(
                _freeze(item, each, f"{prefix}{name}[{index}].") for index, each in enumerate(value)
            )
            continue
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            raise UserError(
                f"config.{prefix}{name} must be {expected.__name__}, not {value!r} "
                f"({type(value).__name__})"
            )
        if expected is float and not math.isfinite(value):
            raise UserError(f"config.{prefix}{name} must be a finite number, not {value}")
        values[name] = value
    return cls(**values)


def _check_values(config: Any, group: str = "") -> None:
    """Checks each value that a config, or one group of it, has, by itself."""

    def values(paths: Iterable[str]) -> Iterator[tuple[str, Any]]:
        for path in paths:
            value = None
            if path.startswith(group):
                with contextlib.suppress(AttributeError):
                    value = operator.attrgetter(path.removeprefix(group))(config)
            if value is not None:
                yield path, value

    for path, value in values(CHOICES):
        if value not in CHOICES[path]:
            raise UserError(f"config.{path}={value!r}: use one of {', '.join(CHOICES[path])}")
    for path, value in values(POSITIVE):
        if not value > 0:
            raise UserError(f"config.{path} must be positive, not {value}")
    for path, value in values(NOT_NEGATIVE):
        if not value >= 0:
            raise UserError(f"config.{path} must not be negative, but is {value}")
    for path, value in values(FRACTIONS):
        if not 0 <= value < 1:
            raise UserError(f"config.{path} must be in [0, 1), not {value}")


def _check_model(model: ModelConfig) -> None:
    for name in ("hidden_dropout", "attention_dropout"):
        if getattr(model, name) > 0.99:  # rates are multiples of 1/256: 256/256 drops everything
            raise UserError(f"config.model.{name} must be at most 0.99, not {getattr(model, name)}")
    if model.hidden_size % model.num_heads:
        raise UserError(
            f"config.model.hidden_size={model.hidden_size} is not a multiple of "
            f"config.model.num_heads={model.num_heads}"
        )


def _check(config: Config) -> None:
    _check_values(config)
    _check_model(config.model)
    model, data, optimizer = config.model, config.data, config.optimizer
    _check_run(config)
    if model.type_vocab_size < 2 and data.pairs != "none":
        raise UserError(
            f"config.model.type_vocab_size={model.type_vocab_size}: pairs need 2 token types"
        )
    if data.max_seq_length > model.max_position_embeddings:
        raise UserError(
            f"config.data.max_seq_length={data.max_seq_length} exceeds "
            f"config.model.max_position_embeddings={model.max_position_embeddings}"
        )
    if model.attention == "splash" and (model.attention_dropout or data.max_seq_length % 128):
        raise UserError(
            "config.model.attention='splash' takes config.model.attention_dropout=0 and a "
            "config.data.max_seq_length that is a multiple of 128; use auto or xla"
        )
    # [CLS] A [SEP] B [SEP], with a token to predict and one to predict it from.
    if data.max_seq_length < 8:
        raise UserError(
            f"config.data.max_seq_length={data.max_seq_length} is too short: at least 8"
        )
    if data.masked_lm_prob == 0:
        raise UserError("config.data.masked_lm_prob must be above 0: nothing would be predicted")
    if data.batch_size % optimizer.gradient_accumulation:
        raise UserError(
            f"config.data.batch_size={data.batch_size} is not a multiple of "
            f"config.optimizer.gradient_accumulation={optimizer.gradient_accumulation}"
        )
    if optimizer.warmup_steps > config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps={optimizer.warmup_steps} exceeds "
            f"config.steps={config.steps}"
        )


def _check_run(config: RunConfig | FinetuneConfig) -> None:
    """What holds for any run."""
    if config.seed >= 2**32:  # JAX would silently take the lower 32 bits
        raise UserError(f"config.seed={config.seed} must be below 2**32")
    if config.optimizer.name == "lamb" and not config.optimizer.bias_correction:
        raise UserError("config.optimizer.bias_correction=False: lamb always corrects; set it True")
    sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"config.mesh sizes must be positive, at most one of them -1, not {sizes}")

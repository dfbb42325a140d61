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
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
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
      store: directory that `bert-jax prepare` wrote.
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
class Config:
    """A pretraining run.

    Attributes:
      init_from: weights to start from, anything that `bert_jax.load` reads; empty is random.
      init_missing_heads: let heads that `init_from` lacks start at random.
      seed: of parameters, batches, masks and dropout.
      rng: generator of dropout, "threefry" (the same on every mesh) or "rbg" (cheap on TPU).
      steps: optimizer steps of the whole run; with a budget, at most so many.
      phases: one after another; without any the whole run is one phase, of the fields above.
      budget_hours: the schedule ends, and so does the run, when so much time is spent; 0 is off.
      target_mlm_accuracy: the run ends at the first evaluation that reaches it; 0 is off.
      target_rows: rows in which a reference reaches the target, to compare with; 0 is unknown.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations on held-out documents; 0 evaluates at the end only.
      eval_batches: batches of an evaluation; 0 takes every held-out document.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_checkpoints: how many of the newest to keep.
    """

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    init_from: str
    init_missing_heads: bool
    seed: int
    rng: str
    steps: int
    phases: tuple[PhaseConfig, ...]
    budget_hours: float
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
)


def load_config(arguments: Sequence[str]) -> Config:
    """Reads `--config=FILE.py[:arg]` and `--config.field=value` overrides.

    Args:
      arguments: the command-line arguments that concern the config, nothing else.

    Raises:
      UserError: the file is missing or broken, a field unknown, of a wrong type or out of range.
    """
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
    return build_config(fields)


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


def read_config(path: Any) -> Config:
    """Reads back the `config.json` of a workdir.

    Args:
      path: an `epath.Path` or `pathlib.Path`.
    """
    with _errors_of(path):
        return build_config(_read_json(path))


def read_model_config(path: Any) -> tuple[ModelConfig, tuple[str, ...]]:
    """The model and the names of its classes, from the `config.json` of any directory of ours.

    Args:
      path: an `epath.Path` or `pathlib.Path`.
    """
    with _errors_of(path):
        fields = _read_json(path)
        return _freeze(ModelConfig, fields.get("model", {}), "model."), tuple(
            fields.get("labels", ())
        )


def _read_json(path: Any) -> Any:
    if not path.exists():
        raise UserError("no such file; is its directory that of a training run?")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"not JSON ({error}); the run's config.json is damaged") from error


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


def _check(config: Config) -> None:
    def get(path: str) -> Any:
        value = config
        for name in path.split("."):
            value = getattr(value, name)
        return value

    for path, choices in CHOICES.items():
        if get(path) not in choices:
            raise UserError(f"config.{path}={get(path)!r}: use one of {', '.join(choices)}")
    for path in POSITIVE:
        if not get(path) > 0:
            raise UserError(f"config.{path} must be positive, not {get(path)}")
    for path in NOT_NEGATIVE:
        if not get(path) >= 0:
            raise UserError(f"config.{path} must not be negative, but is {get(path)}")
    for path in FRACTIONS:
        if not 0 <= get(path) < 1:
            raise UserError(f"config.{path} must be in [0, 1), not {get(path)}")

    model, data, optimizer = config.model, config.data, config.optimizer
    for path in ("model.hidden_dropout", "model.attention_dropout"):
        if get(path) > 0.99:  # rates are multiples of 1/256, and 256/256 would drop everything
            raise UserError(f"config.{path} must be at most 0.99, not {get(path)}")
    if config.seed >= 2**32:  # JAX would silently take the lower 32 bits
        raise UserError(f"config.seed={config.seed} must be below 2**32")
    if model.hidden_size % model.num_heads:
        raise UserError(
            f"config.model.hidden_size={model.hidden_size} is not a multiple of "
            f"config.model.num_heads={model.num_heads}"
        )
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
    if optimizer.name == "lamb" and not optimizer.bias_correction:
        raise UserError("config.optimizer.bias_correction=False: lamb always corrects; set it True")
    if optimizer.warmup_steps > config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps={optimizer.warmup_steps} exceeds "
            f"config.steps={config.steps}"
        )
    sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"config.mesh sizes must be positive, at most one of them -1, not {sizes}")

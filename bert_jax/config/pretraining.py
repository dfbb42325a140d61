"""The configuration of a pretraining run: groups of fields, and phases that change them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from bert_jax.config.overrides import flatten, merge
from bert_jax.data.batch_sizes import BatchSizes
from bert_jax.data.sampling import Sampling
from bert_jax.errors import UserError
from bert_jax.fields import Plain, build, field, to_plain
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.attention import SPLASH_MULTIPLE
from bert_jax.model.flash_attention import what_does_not_fit
from bert_jax.objective import distillation, hybrid, replaced_token  # noqa: F401  kinds of objectives
from bert_jax.objective.masking import AdaptiveMasking, BoundMasking, Masking, TokenMasking
from bert_jax.objective.pretraining import MlmNsp
from bert_jax.objective.protocol import Objective
from bert_jax.parallel.mesh import Layout
from bert_jax.train.optimizers import AdamW, Optimizer
from bert_jax.train.run import PretrainingRun, parse_origin


@dataclass(frozen=True)
class PretrainConfig(PretrainingRun):
    """A pretraining run."""

    model: Architecture = field(Architecture(), "architecture of the model")
    numerics: Numerics = field(Numerics(), "how the model is computed")
    data: Sampling = field(Sampling(), "what a batch holds")
    masking: Masking = field(TokenMasking(), "which tokens to predict")
    objective: Objective = field(MlmNsp(), "training objective")
    optimizer: Optimizer = field(AdamW(), "optimizer and learning rate")
    mesh: Layout = field(Layout(), "layout over devices")
    phases: tuple[Mapping[str, Any], ...] = field(
        (),
        "consecutive stretches of the run, each a group with its steps and any other fields that "
        "it changes, as long as the parameters keep their shapes; () for none",
    )

    def to_dict(self) -> Plain:
        """Nested plain values, as in `config.json`."""
        return to_plain(self)

    @property
    def predictions_per_row(self) -> int:
        """Number of predictions that a row has room for."""
        most = self.data.max_examples_per_row if self.data.packing else None
        return self.masking.predictions_per_row(self.data.max_seq_length, most)

    @property
    def adaptive(self) -> AdaptiveMasking | None:
        """The masking, if it follows the predictions."""
        return self.masking if isinstance(self.masking, AdaptiveMasking) else None

    def bound_masking(self, vocabulary: "Vocabulary", first_step: int = 0) -> BoundMasking:
        """The masking of this configuration's batches, bound to a vocabulary.

        Args:
          vocabulary: vocabulary of the data.
          first_step: the first step of the run or phase.
        """
        return BoundMasking(
            masking=self.masking,
            slots=self.predictions_per_row,
            mask_id=vocabulary.mask_id,
            is_special=np.isin(np.arange(len(vocabulary.vocab)), vocabulary.special_ids),
            is_continuation=vocabulary.is_continuation,
            first_step=first_step,
            steps=self.steps,
        )

    @property
    def first_step(self) -> int:
        """Steps of the run that a branch begins with; 0 for others."""
        return parse_origin(self.branch_from).step or 0

    @property
    def last_step(self) -> int:
        """The step with which the run ends."""
        return self.first_step + self.steps

    def stages(self) -> tuple["Stage", ...]:
        """The phases as complete configurations; without phases, the whole run as one stage.

        A branch has done its warmup, but its phases may have one.
        """
        first_step, whole = self.first_step, self
        if self.branch_from:
            warm = dataclasses.replace(self.optimizer, warmup_steps=0)
            whole = dataclasses.replace(self, optimizer=warm)
        if not self.phases:
            return (Stage("", first_step, whole, {}),)
        stages: list[Stage] = []
        for index, phase in enumerate(self.phases):
            name = f"phases[{index}]"
            if "steps" not in phase:
                raise UserError(f"config.{name}.steps is missing: set it in the recipe")
            with _naming_the_phase(name, phase):
                fields = merge(PretrainConfig, whole.to_dict() | {"phases": ()}, phase)
                stages.append(Stage(name, first_step, build(PretrainConfig, fields), phase))
            first_step = stages[-1].last_step
        return tuple(stages)

    @property
    def stores(self) -> tuple[str, ...]:
        """The directories of the data of all stages, each once."""
        return tuple(dict.fromkeys(x for stage in self.stages() for x in stage.config.data.stores))

    def stage_of(self, step: int) -> "Stage":
        """The stage that the state after `step` steps was trained in."""
        return next(stage for stage in self.stages() if step <= stage.last_step)

    def check(self, path: str) -> None:
        """Raises UserError if fields of several groups do not fit together."""
        super().check(path)
        for name in ("phases", "branch_from"):
            if self.budget_hours and getattr(self, name):
                none = "()" if name == "phases" else "''"
                raise UserError(
                    f"{path}.budget_hours={self.budget_hours} does not go with {path}.{name}: "
                    f"set it to 0, or {path}.{name} to {none}"
                )
        if not self.phases:
            self._check_groups(path)
            return
        # Each stage is checked as it is built.
        total = self.stages()[-1].last_step - self.first_step
        if self.steps != total:
            raise UserError(
                f"{path}.steps={self.steps}, but the steps of {path}.phases sum to {total}: "
                f"change those of a phase, as in --config.phases[0].steps=1000"
            )

    def _check_groups(self, path: str) -> None:
        model, numerics, data = self.model, self.numerics, self.data
        if model.type_vocab_size == 1 and data.pairs != "none":
            raise UserError(
                f"{path}.model.type_vocab_size={model.type_vocab_size}: pairs need 2 token types "
                "(or 0: then [SEP] alone tells the two apart)"
            )
        if data.max_seq_length > model.max_position_embeddings:
            raise UserError(
                f"{path}.data.max_seq_length={data.max_seq_length} exceeds "
                f"{path}.model.max_position_embeddings={model.max_position_embeddings}"
            )
        splash_fits = not numerics.attention_dropout and data.max_seq_length % SPLASH_MULTIPLE == 0
        if numerics.attention == "splash" and not splash_fits:
            raise UserError(
                f"{path}.numerics.attention='splash' takes {path}.numerics.attention_dropout=0 and "
                f"a {path}.data.max_seq_length that is a multiple of {SPLASH_MULTIPLE}; use "
                "auto or xla"
            )
        self.objective.check_model(path, model, numerics)
        if numerics.attention == "flash" and numerics.attention_dropout:
            for encoder in self.objective.encoders(model):
                heads, positions = encoder.num_heads, encoder.position_embedding
                scores = positions.slopes(heads), positions.buckets_of_distances()
                reason = what_does_not_fit(
                    data.max_seq_length,
                    encoder.hidden_size // heads,
                    scored=any(x is not None for x in scores),
                )
                if reason:
                    raise UserError(
                        f"{path}.numerics.attention='flash' takes {reason}: use auto or xla, or "
                        f"{path}.numerics.attention_dropout=0"
                    )
        check_microbatches(path, "data.batch_size", data.batch_size, self.optimizer)
        for rows in BatchSizes(data).sizes[:-1]:
            name = "data.start_batch_size with data.growth_rows, a batch"
            check_microbatches(path, name, rows, self.optimizer)
        if self.optimizer.warmup_steps > self.steps and not self.branch_from:
            raise UserError(
                f"{path}.optimizer.warmup_steps={self.optimizer.warmup_steps} exceeds "
                f"{path}.steps={self.steps}"
            )


class Vocabulary(Protocol):
    """The attributes of a `bert_jax.data.tokenizer.Tokenizer` that masking needs."""

    @property
    def vocab(self) -> Sequence[str]: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def special_ids(self) -> np.ndarray: ...
    @property
    def is_continuation(self) -> np.ndarray: ...


def check_microbatches(path: str, name: str, batch_size: int, optimizer: Optimizer) -> None:
    """Raises UserError if a batch cannot be split into equal microbatches."""
    if batch_size % optimizer.gradient_accumulation:
        raise UserError(
            f"{path}.{name}={batch_size} is not a multiple of "
            f"{path}.optimizer.gradient_accumulation={optimizer.gradient_accumulation}"
        )


class Stage(NamedTuple):
    """A phase, or a whole run without phases: batches of one shape and one learning-rate schedule.

    Attributes:
      name: "phases[0]", for example; empty if the run has no phases.
      first_step: steps of the run before the stage.
      config: configuration without phases; its `steps` are those of the stage.
      phase: fields that the phase sets.
    """

    name: str
    first_step: int
    config: PretrainConfig
    phase: Mapping[str, Any]

    @property
    def last_step(self) -> int:
        """Steps of the run at the end of the stage."""
        return self.first_step + self.config.steps

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Context in which a UserError names fields as the user wrote them: phases[0].FIELD."""
        return _naming_the_phase(self.name, self.phase)


@contextlib.contextmanager
def _naming_the_phase(name: str, phase: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        message = str(error)
        # One field's name may be a prefix of another's, so the longest come first.
        for path in sorted(flatten(phase), key=len, reverse=True):
            message = message.replace(f"config.{path}", f"config.{name}.{path}")
        raise UserError(message) from error

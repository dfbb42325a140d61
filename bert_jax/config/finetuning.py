"""The configuration of a fine-tuning run."""

import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bert_jax.config.pretraining import check_microbatches
from bert_jax.errors import UserError
from bert_jax.fields import Plain, field, to_plain
from bert_jax.model.architecture import Numerics
from bert_jax.parallel.mesh import Layout
from bert_jax.tasks import ClassificationTask, Task
from bert_jax.train.optimizers import AdamW, Optimizer
from bert_jax.train.run import FinetuningRun

T = TypeVar("T")
FOLD = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True)
class FinetuneConfig(FinetuningRun):
    """A fine-tuning run, or one for each of several seeds."""

    # Without type parameters: `build` reads the annotation and does not support them.
    task: Task = field(  # type: ignore[type-arg]
        ClassificationTask(), "task and its examples"
    )
    numerics: Numerics = field(Numerics(), "how the model is computed")
    optimizer: Optimizer = field(AdamW(), "optimizer and learning rate")
    mesh: Layout = field(Layout(), "layout over devices")

    def to_dict(self) -> Plain:
        """Nested plain values, as in `config.json`."""
        return to_plain(self)

    def chosen(self, examples: list[T]) -> list[T]:
        """Those to train on of all training examples, in their order.

        Not those of `held_out`, and at most `max_examples`.
        """
        order = np.random.default_rng(0).permutation(len(examples))
        if self.fold:
            number, parts = self._fold
            order = order[np.arange(len(order)) % parts != number - 1]
        if self.max_examples:
            order = order[: self.max_examples]
        return [examples[index] for index in np.sort(order).tolist()]

    def held_out(self, examples: list[T]) -> list[T]:
        """Those that `fold` holds out of all training examples, in their order."""
        number, parts = self._fold
        order = np.random.default_rng(0).permutation(len(examples))
        return [examples[index] for index in np.sort(order[number - 1 :: parts]).tolist()]

    @property
    def _fold(self) -> tuple[int, int]:
        """The number of the part that is held out, from 1, and how many parts there are."""
        number, _, parts = self.fold.partition("/")
        return int(number), int(parts)

    def check(self, path: str) -> None:
        """Raises UserError if a source is missing or fields do not fit together."""
        super().check(path)
        if not self.init_from:
            raise UserError(f"{path}.init_from is empty: name the directory of a trained model")
        if self.fold:
            numbers = FOLD.fullmatch(self.fold)
            if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]) >= 2:
                raise UserError(f"{path}.fold={self.fold!r}: must be K/N, such as 1/5, from 1 to N")
            if self.task.dev:
                raise UserError(
                    f"{path}.fold={self.fold} makes the dev set: set {path}.task.dev= (empty)"
                )
        elif not self.task.dev:
            raise UserError(
                f"{path}.task.dev is empty: name a file or tfds:NAME:SPLIT, or hold out training "
                f"examples with {path}.fold=1/5"
            )
        if not self.task.train:
            raise UserError(f"{path}.task.train is empty: name a file or tfds:NAME:SPLIT")
        if self.lora_rank:
            self._check_lora(path)
        check_microbatches(path, "batch_size", self.batch_size, self.optimizer)

    def _check_lora(self, path: str) -> None:
        """Raises UserError if another field says otherwise what is trained, or how."""
        others = {
            "freeze": self.freeze,
            "random_weights": self.random_weights,
            "reinit_layers": self.reinit_layers,
            "teacher": self.teacher,
            "numerics.fake_int8": self.numerics.fake_int8,
        }
        for name, value in others.items():
            if value:
                raise UserError(
                    f"{path}.{name}={value} does not go with {path}.lora_rank={self.lora_rank}, "
                    "which leaves the encoder as it is, in floats: leave one out"
                )

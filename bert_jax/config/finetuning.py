"""The configuration of a fine-tuning run."""

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
        """Those to train on of all training examples, in their order: `max_examples` of them."""
        if not 0 < self.max_examples < len(examples):
            return examples
        order = np.random.default_rng(0).permutation(len(examples))
        return [examples[index] for index in sorted(order[: self.max_examples].tolist())]

    def check(self, path: str) -> None:
        """Raises UserError if a source is missing or fields do not fit together."""
        super().check(path)
        if not self.init_from:
            raise UserError(f"{path}.init_from is empty: name the directory of a trained model")
        for name in ("train", "dev"):
            if not getattr(self.task, name):
                raise UserError(f"{path}.task.{name} is empty: name a file or tfds:NAME:SPLIT")
        check_microbatches(path, "batch_size", self.batch_size, self.optimizer)

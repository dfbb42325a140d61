"""An optimizer with a knob: Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675)."""

from dataclasses import dataclass

import optax

from bert_jax.fields import FRACTION, field
from bert_jax.model.parameters import Axes
from bert_jax.train.optimizers import Optimizer


@dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of an interpolated momentum."""

    interpolation: float = field(0.9, "share of the momentum in a direction", bounds=FRACTION)
    momentum: float = field(0.99, "decay of the momentum", bounds=FRACTION)

    def core(self, axes: Axes) -> optax.GradientTransformation:
        return optax.scale_by_lion(b1=self.interpolation, b2=self.momentum)

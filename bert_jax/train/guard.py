"""Skips the steps whose gradient is not finite or a spike, inside the compiled step."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bert_jax.errors import UserError
from bert_jax.fields import FRACTION, NOT_NEGATIVE, field


@dataclass(frozen=True)
class Guard:
    """Which steps are skipped, and how many in a row.

    A skipped step changes nothing but the step counter and what the guard remembers.
    """

    max_skips: int = field(
        0,
        "skip a step whose gradient is not finite or a spike, and stop the run when so many in a "
        "row are skipped; 0: skip none",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    spike: float = field(
        0.0,
        "gradient norm that is a spike, as a multiple of the running mean of the norms of the "
        "steps that were not skipped; 0: skip only gradients that are not finite",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    memory: float = field(
        0.99,
        "decay of that mean; spikes are looked for when it is 1 / (1 - memory) steps old",
        bounds=FRACTION,
        resume=True,
    )

    def check(self, path: str) -> None:
        """Raises UserError if ordinary gradients would be spikes."""
        if 0 < self.spike <= 1:
            raise UserError(f"{path}.spike={self.spike} must be above 1, or 0")

    def judge(self, memory: "GuardState", norm: jax.Array) -> tuple[jax.Array, "GuardState"]:
        """Judges the norm of a gradient.

        Args:
          memory: of the steps before.
          norm: fp32 scalar.

        Returns:
          Whether to skip the step, bool, and what to remember of it.
        """
        skip = ~jnp.isfinite(norm)
        if self.spike:
            is_old = memory.accepted >= round(1 / (1 - self.memory))
            # Without its first value, 0, which has a share of memory ** accepted.
            mean = memory.mean / (1 - self.memory ** jnp.maximum(memory.accepted, 1))
            skip |= is_old & (norm > self.spike * mean)
        mean = self.memory * memory.mean + (1 - self.memory) * norm
        return skip, GuardState(
            mean=jnp.where(skip, memory.mean, mean),
            accepted=memory.accepted + ~skip,
            skips=jnp.where(skip, memory.skips + 1, 0),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GuardState:
    """What a guard remembers.

    Attributes:
      mean: fp32 scalar, running mean of the gradient norms of accepted steps, from 0 on.
      accepted: int32 scalar, steps in it.
      skips: int32 scalar, steps skipped since the last accepted one.
    """

    mean: jax.Array
    accepted: jax.Array
    skips: jax.Array

    @classmethod
    def start(cls) -> "GuardState":
        """Before the first step."""
        return cls(jnp.zeros([]), jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32))

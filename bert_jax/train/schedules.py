"""Learning rate schedules."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bert_jax.fields import FRACTION, POSITIVE, Choice, field

# int32 step (the first is 0), and any further arguments of a step -> fp32 rate
Rate = Callable[..., jax.Array]


@dataclass(frozen=True)
class Schedule(Choice):
    """Linear warmup from 0, then a curve that the kind defines.

    As in Google's BERT and NVIDIA's, the decay counts from step 0 over all steps and warmup
    overrides it. So the rate drops where warmup ends: for "linear", from the peak to
    peak * (1 - warmup_steps / steps). A schedule joined at the peak would be slightly higher.
    """

    def factor(self, t: jax.Array, steps: int, warmup_steps: int) -> jax.Array:
        """The rate after warmup, as a share of the peak.

        Args:
          t: fp32, steps done.
          steps: steps of the whole schedule.
          warmup_steps: how many of them are warmup.
        """
        raise NotImplementedError

    def rate(self, peak: float, warmup_steps: int, steps: int) -> Rate:
        """The rate of each step."""

        def rate(step: jax.Array) -> jax.Array:
            t = jnp.asarray(step, jnp.float32)
            warmup = t / max(warmup_steps, 1)
            decay = self.factor(t, steps, warmup_steps)
            return peak * jnp.where(t < warmup_steps, warmup, decay)

        return rate


def left(t: jax.Array, steps: int) -> jax.Array:
    """The share of the steps that are left."""
    return jnp.maximum(1.0 - t / steps, 0.0)


FLOOR = "rate at the end, as a share of the peak"


@dataclass(frozen=True)
class Linear(Schedule, name="linear"):
    """From 1 to the floor in a straight line."""

    floor: float = field(0.0, FLOOR, bounds=FRACTION)

    def factor(self, t: jax.Array, steps: int, warmup_steps: int) -> jax.Array:
        return self.floor + (1.0 - self.floor) * left(t, steps)


@dataclass(frozen=True)
class Poly(Schedule, name="poly"):
    """(1 - t/T) ** power."""

    power: float = field(1.0, "exponent", bounds=POSITIVE)

    def factor(self, t: jax.Array, steps: int, warmup_steps: int) -> jax.Array:
        return left(t, steps) ** self.power


@dataclass(frozen=True)
class Cosine(Schedule, name="cosine"):
    """Half a cosine, from 1 to the floor."""

    floor: float = field(0.0, FLOOR, bounds=FRACTION)

    def factor(self, t: jax.Array, steps: int, warmup_steps: int) -> jax.Array:
        share = 0.5 * (1.0 + jnp.cos(jnp.pi * (1.0 - left(t, steps))))
        return self.floor + (1.0 - self.floor) * share


@dataclass(frozen=True)
class OneMinusSqrt(Schedule, name="one_minus_sqrt"):
    """1 - (1 - floor) sqrt(t/T) (Haegele et al. 2024, https://arxiv.org/abs/2405.18392)."""

    floor: float = field(0.0, FLOOR, bounds=FRACTION)

    def factor(self, t: jax.Array, steps: int, warmup_steps: int) -> jax.Array:
        return 1.0 - (1.0 - self.floor) * jnp.sqrt(1.0 - left(t, steps))


@dataclass(frozen=True)
class Constant(Schedule, name="constant"):
    """1."""

    def factor(self, t: jax.Array, steps: int, warmup_steps: int) -> jax.Array:
        return jnp.ones_like(t)


@dataclass(frozen=True)
class Cooldown(Schedule, name="cooldown"):
    """One schedule, and then another from the rate that it reached.

    With the defaults this is warmup, stable, decay (Hu et al. 2024,
    https://arxiv.org/abs/2404.06395).
    """

    before: Schedule = field(Constant(), "schedule up to the cooldown, over the steps until then")
    after: Schedule = field(Linear(), "schedule of the cooldown, over its steps")
    share: float = field(
        0.1, "share of the steps that are cooldown, the last ones", bounds="(0, 1)"
    )

    def factor(self, t: jax.Array, steps: int, warmup_steps: int) -> jax.Array:
        cooldown = max(round(self.share * steps), 1)
        start = steps - cooldown
        reached = self.before.factor(jnp.minimum(t, start), start, warmup_steps)
        return reached * self.after.factor(jnp.maximum(t - start, 0.0), cooldown, 0)


@dataclass(frozen=True)
class Rsqrt(Schedule, name="rsqrt"):
    """sqrt(warmup_steps / t)."""

    def factor(self, t: jax.Array, steps: int, warmup_steps: int) -> jax.Array:
        return jnp.sqrt(max(warmup_steps, 1) / jnp.maximum(t, 1.0))

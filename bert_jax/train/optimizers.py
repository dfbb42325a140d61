"""Optimizers.

An optimizer here gives a descent direction; the step multiplies it by the learning rate. So the
rate is a plain function of the step and there is only one step counter.
"""

import operator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from bert_jax.fields import FRACTION, NOT_NEGATIVE, POSITIVE, Choice, field
from bert_jax.model.parameters import Axes, Params, is_stacked, path_of
from bert_jax.train.guard import Guard
from bert_jax.train.schedules import Linear, Schedule


@dataclass(frozen=True)
class Optimizer(Choice):
    """An optimizer and its learning rate. All kinds share these fields.

    Every kind clips the gradients by value and by their global norm, applies its `core`, and adds
    decoupled weight decay, except to biases and norms unless `decay_all`.
    """

    learning_rate: float = field(1e-4, "peak learning rate", bounds=POSITIVE, resume=True)
    warmup_steps: int = field(
        0, "steps in which the learning rate rises from 0", bounds=NOT_NEGATIVE, resume=True
    )
    schedule: Schedule = field(Linear(), "learning rate after warmup")
    weight_decay: float = field(0.01, "decoupled weight decay", bounds=NOT_NEGATIVE)
    decay_all: bool = field(False, "decay biases and scales of norms, too")
    clip_norm: float = field(
        1.0, "global norm that gradients are clipped to; 0 for no clipping", bounds=NOT_NEGATIVE
    )
    clip_value: float = field(
        0.0,
        "largest absolute value of each element of a gradient, before clip_norm; 0 for no limit",
        bounds=NOT_NEGATIVE,
    )
    gradient_accumulation: int = field(1, "microbatches per batch", bounds=POSITIVE)
    ema_decay: float = field(
        0.0,
        "keep a running average of the parameters: after each step it is ema_decay times the "
        "average plus 1 - ema_decay times the parameters, from the first ones on; 0 for none",
        bounds=FRACTION,
        resume=True,
    )

    guard: Guard = field(Guard(), "which steps are skipped")

    def core(self, axes: Axes) -> optax.GradientTransformation:
        """Turns clipped gradients into a direction, before weight decay.

        Args:
          axes: names of the axes of each parameter; the first is "layer" where layers are stacked.
        """
        raise NotImplementedError

    def transformation(self, axes: Axes) -> optax.GradientTransformation:
        """Turns gradients into a direction, without the learning rate."""
        clips = [optax.clip(self.clip_value)] if self.clip_value else []
        clips += [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        # They are one element of the chain: checkpoints name moments by their place in it.
        first, *others = clips or [optax.identity()]
        return optax.chain(
            optax.chain(first, *others) if others else first,
            self.core(axes),
            optax.add_decayed_weights(self.weight_decay, None if self.decay_all else decay_mask),
        )


@dataclass(frozen=True)
class AdamW(Optimizer, name="adamw"):
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101).

    Without bias correction the moments are used as they are, as in Google's BERT.
    """

    b1: float = field(0.9, "decay of the first moment", bounds=FRACTION)
    b2: float = field(0.999, "decay of the second moment", bounds=FRACTION)
    eps: float = field(1e-6, "added to the root of the second moment", bounds=POSITIVE)
    bias_correction: bool = field(False, "divide the moments by 1 - decay ** step")

    def core(self, axes: Axes) -> optax.GradientTransformation:
        scale = optax.scale_by_adam if self.bias_correction else _scale_by_uncorrected_adam
        return scale(b1=self.b1, b2=self.b2, eps=self.eps)


@dataclass(frozen=True)
class StableAdamW(Optimizer, name="stable_adamw"):
    """AdamW that shortens the steps of a tensor whose gradient has just become larger.

    The direction of each tensor is divided by max(1, RMS(g / sqrt(max(v, eps^2)))), where v is the
    second moment with bias correction. In a stack every layer has its own divisor. Reference:
    Wortsman et al. 2023, https://arxiv.org/abs/2304.13013, algorithm 2.
    """

    b1: float = field(0.9, "decay of the first moment", bounds=FRACTION)
    b2: float = field(0.98, "decay of the second moment", bounds=FRACTION)
    eps: float = field(1e-6, "added to the root of the second moment", bounds=POSITIVE)

    def core(self, axes: Axes) -> optax.GradientTransformation:
        adam = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)

        def update(
            gradients: Params, state: optax.ScaleByAdamState, params: Params | None = None
        ) -> tuple[Params, optax.ScaleByAdamState]:
            directions, state = adam.update(gradients, state, params)
            correction = 1.0 - self.b2**state.count

            def shorten(
                path: tuple[Any, ...], direction: jax.Array, g: jax.Array, v: jax.Array
            ) -> jax.Array:
                over = tuple(range(int(is_stacked(axes[path_of(path)])), g.ndim))
                ratio = g**2 / jnp.maximum(v / correction, self.eps**2)
                return direction / jnp.maximum(1.0, jnp.sqrt(ratio.mean(over, keepdims=True)))

            tree_map = jax.tree_util.tree_map_with_path
            return tree_map(shorten, directions, gradients, state.nu), state

        return optax.GradientTransformation(adam.init, update)


@dataclass(frozen=True)
class Muon(Optimizer, name="muon"):
    """Muon for the matrices of layers, AdamW for all other parameters.

    The momentum of a matrix is brought close to the nearest orthogonal one by five Newton-Schulz
    iterations, and scaled by 0.2 sqrt(its larger side), so that its step is as large as AdamW's and
    both have one learning rate and decay. In a stack every layer is orthogonalized by itself.
    References: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025,
    https://arxiv.org/abs/2502.16982.
    """

    momentum: float = field(0.95, "decay of the sum of gradients, with Nesterov", bounds=FRACTION)
    b1: float = field(0.9, "AdamW: decay of the first moment", bounds=FRACTION)
    b2: float = field(0.98, "AdamW: decay of the second moment", bounds=FRACTION)
    eps: float = field(1e-6, "AdamW: added to the root of the second moment", bounds=POSITIVE)

    def core(self, axes: Axes) -> optax.GradientTransformation:
        def masks(params: Params) -> Params:
            return jax.tree_util.tree_map_with_path(
                lambda path, _: is_stacked(names := axes[path_of(path)]) and len(names) == 3, params
            )

        def dimensions(params: Params) -> Params:  # of [layer, inputs, outputs]
            return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(1, 2), params)

        def scale(updates: Params, _: Params | None) -> Params:
            return jax.tree.map(lambda x: 0.2 * max(x.shape[1:]) ** 0.5 * x, updates)

        matrices = optax.chain(
            optax.contrib.scale_by_muon(beta=self.momentum, weight_dimension_numbers=dimensions),
            optax.stateless(scale),
        )
        others = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)
        return optax.chain(
            optax.masked(matrices, masks),
            optax.masked(others, lambda params: jax.tree.map(operator.not_, masks(params))),
        )


@dataclass(frozen=True)
class Lamb(Optimizer, name="lamb"):
    """LAMB (You et al. 2020, https://arxiv.org/abs/1904.00962).

    The direction of AdamW with bias correction, scaled for every layer by its trust ratio
    |parameter| / |direction|. As in NVIDIA's and MLPerf's versions, biases and LayerNorm are
    neither decayed nor scaled, and the ratio is 1 if a norm is 0.
    """

    b1: float = field(0.9, "decay of the first moment", bounds=FRACTION)
    b2: float = field(0.999, "decay of the second moment", bounds=FRACTION)
    eps: float = field(1e-6, "added to the root of the second moment", bounds=POSITIVE)

    def core(self, axes: Axes) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)

    def transformation(self, axes: Axes) -> optax.GradientTransformation:
        return optax.chain(super().transformation(axes), optax.stateless(_trust_ratio(axes)))


@dataclass(frozen=True)
class Adafactor(Optimizer, name="adafactor"):
    """Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235) with default constants.

    The root mean squares that scale parameters and clip updates are taken over all layers of a
    stack together.
    """

    def core(self, axes: Axes) -> optax.GradientTransformation:
        # The version in optax ends with a change of sign, but the step subtracts.
        return optax.chain(optax.adafactor(), optax.scale(-1.0))


@dataclass(frozen=True)
class Sgd(Optimizer, name="sgd"):
    """Stochastic gradient descent with momentum."""

    momentum: float = field(0.9, "decay of the sum of gradients", bounds=FRACTION)

    def core(self, axes: Axes) -> optax.GradientTransformation:
        return optax.trace(self.momentum)


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: all but biases and LayerNorm scales."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _decays(path), params)


def scale_by_depth(
    num_layers: int, layer_decay: float, freeze: bool
) -> optax.GradientTransformation:
    """Makes the lower layers of an encoder learn more slowly than the head on top, or not at all.

    The direction of the top layer is scaled by `layer_decay`, each layer below by one more such
    factor, and the embeddings by another, as in ELECTRA (Clark et al. 2020,
    https://arxiv.org/abs/2003.10555). With `freeze` layers and embeddings do not change, nor do
    they decay. Pooler and heads are not scaled.
    """

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        if names[0] != "bert" or names[1] == "pooler":
            return update
        if freeze:
            return jnp.zeros_like(update)
        if names[1] == "embeddings":
            return update * layer_decay ** (num_layers + 1)
        if names[1] == "norm":  # after the top layer
            return update * layer_decay
        factors = layer_decay ** jnp.arange(num_layers, 0, -1)
        return update * factors.reshape(-1, *[1] * (update.ndim - 1))

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def _decays(path: tuple[Any, ...]) -> bool:
    return path[-1].key not in ("bias", "scale")


def _trust_ratio(axes: Axes) -> Any:
    def scale(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> jax.Array:
        if not _decays(path):
            return update
        # In a stack, every layer has its own ratio.
        over = tuple(range(int(is_stacked(axes[path_of(path)])), param.ndim))
        param_norm = jnp.sqrt(jnp.sum(param**2, over, keepdims=True))
        update_norm = jnp.sqrt(jnp.sum(update**2, over, keepdims=True))
        defined = (param_norm > 0) & (update_norm > 0)
        return update * jnp.where(defined, param_norm / jnp.where(defined, update_norm, 1.0), 1.0)

    return lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params)


def _scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    def init(params: Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

    def update(
        gradients: Params, state: optax.ScaleByAdamState, params: Params | None = None
    ) -> tuple[Params, optax.ScaleByAdamState]:
        del params
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)

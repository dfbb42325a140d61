"""Optimizers and learning rate schedules.

An optimizer here gives a descent direction; the step multiplies it by the rate. So the rate
is a plain function of the step and no counter is kept twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]


def learning_rate_schedule(
    kind: str, *, peak: float, warmup_steps: int, steps: int, power: float = 1.0
) -> Schedule:
    """Linear warmup from 0, then a decay.

    As in Google's BERT and NVIDIA's, the decay counts from step 0 over all `steps` and warmup
    overrides it, so the rate drops at the boundary from `peak` to, for "linear",
    peak * (1 - warmup_steps / steps). A schedule joined at the peak would be slightly higher.

    Args:
      kind: "linear" or "poly" ((1 - t/T) ** power), "cosine", "rsqrt" (peak * sqrt(w/t)) or
        "constant".
      peak: the highest rate.
      warmup_steps, steps: w and T, in optimizer steps.
      power: of "poly".

    Returns:
      int32 step (0 is the first) -> fp32 rate.
    """

    def schedule(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        left = jnp.maximum(1.0 - t / steps, 0.0)
        decay = {
            "linear": lambda: left,
            "poly": lambda: left**power,
            "cosine": lambda: 0.5 * (1.0 + jnp.cos(jnp.pi * (1.0 - left))),
            "rsqrt": lambda: jnp.sqrt(max(warmup_steps, 1) / jnp.maximum(t, 1.0)),
            "constant": lambda: jnp.ones_like(t),
        }[kind]()
        warmup = t / max(warmup_steps, 1)
        return peak * jnp.where(t < warmup_steps, warmup, decay)

    return schedule


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: all but biases and LayerNorm scales."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _decays(path), params)


def adamw(
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    bias_correction: bool,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) after a global-norm clip.

    With `bias_correction=False` the moments are used as they are, as in Google's BERT. Weight decay
    is decoupled and skips biases and LayerNorm. `clip_norm=0` turns clipping off.
    """
    scale = optax.scale_by_adam if bias_correction else _scale_by_uncorrected_adam
    return _clip_and_decay(scale(b1=b1, b2=b2, eps=eps), weight_decay, clip_norm)


def lamb(
    *, b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """LAMB (You et al. 2020, https://arxiv.org/abs/1904.00962) after a global-norm clip.

    The direction of AdamW with bias correction, scaled for every layer by its trust ratio
    |parameter| / |direction|. As in NVIDIA's and MLPerf's, biases and LayerNorm neither decay nor
    are scaled, and where a norm is 0 the ratio is 1. `clip_norm=0` turns clipping off.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    return optax.chain(
        _clip_and_decay(adam, weight_decay, clip_norm), optax.stateless(_scale_by_trust_ratio)
    )


def adafactor(*, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235) with its own constants.

    Weight decay and clip as in `adamw`. The root mean squares by which it scales parameters and
    clips updates are taken over all layers of a stack together.
    """
    # optax ends its version with a change of sign, and the step subtracts.
    core = optax.chain(optax.adafactor(), optax.scale(-1.0))
    return _clip_and_decay(core, weight_decay, clip_norm)


def sgd(*, momentum: float, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """SGD with momentum; weight decay (decoupled) and clip as in `adamw`."""
    return _clip_and_decay(optax.trace(momentum), weight_decay, clip_norm)


def scale_by_depth(
    num_layers: int, layer_decay: float, freeze: bool
) -> optax.GradientTransformation:
    """Makes the lower layers of an encoder learn more slowly than the head on top, or not at all.

    The direction of the top layer is scaled by `layer_decay`, each below by another such factor,
    and the embeddings by the last, as in ELECTRA (Clark et al. 2020,
    https://arxiv.org/abs/2003.10555). With `freeze` layers and embeddings stay as they are, weight
    decay included. Pooler and heads are left alone.
    """

    def scale(path, update):
        names = [key.key for key in path]
        if names[0] != "bert" or names[1] == "pooler":
            return update
        if freeze:
            return jnp.zeros_like(update)
        if names[1] == "embeddings":
            return update * layer_decay ** (num_layers + 1)
        factors = layer_decay ** jnp.arange(num_layers, 0, -1)
        return update * factors.reshape(-1, *[1] * (update.ndim - 1))

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def _clip_and_decay(
    core: optax.GradientTransformation, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        core,
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
    )


def _decays(path: tuple[Any, ...]) -> bool:
    return path[-1].key not in ("bias", "scale")


def _layer_axes(path: tuple[Any, ...], ndim: int) -> tuple[int, ...]:
    """The axes of one layer's parameter: all but the first where layers are stacked."""
    stacked = any(key.key == "layers" for key in path)
    return tuple(range(int(stacked), ndim))


def _scale_by_trust_ratio(updates: Any, params: Any) -> Any:
    def scale(path, update, param):
        if not _decays(path):
            return update
        axes = _layer_axes(path, param.ndim)
        param_norm = jnp.sqrt(jnp.sum(param**2, axes, keepdims=True))
        update_norm = jnp.sqrt(jnp.sum(update**2, axes, keepdims=True))
        defined = (param_norm > 0) & (update_norm > 0)
        return update * jnp.where(defined, param_norm / jnp.where(defined, update_norm, 1.0), 1.0)

    return jax.tree_util.tree_map_with_path(scale, updates, params)


def _scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

    def update(gradients, state, params=None):
        del params
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)

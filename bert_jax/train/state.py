"""The training state: step, parameters, optimizer state, and nothing else.

Batches, masks and dropout are functions of (config, seed, step), so these three values are all that
a resume needs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_jax.model.parameters import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The training state, a pytree.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: nested dict of fp32 arrays; layers are stacked on a leading axis.
      opt_state: state of the optax transformation.
    """

    step: jax.Array
    params: Params
    opt_state: Any


def init_state(
    init_params: Callable[[jax.Array], Params],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> TrainState:
    """The state at step 0. Pure: jit it with output shardings, or trace it for shapes."""
    params = init_params(key)
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))


def num_params(params: Params) -> int:
    """Number of parameters, from arrays or their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

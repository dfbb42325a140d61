"""Layer mixing: parts of a layer read a learned mix of all states before them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.architecture import Architecture


class Mixing(nnx.Module):
    """A weighted sum of the embeddings and the results of all parts so far.

    Weights of later states are 0 and never used. Reference: Pagliardini et al. 2024,
    https://arxiv.org/abs/2402.02622, here after each attention and feed-forward, as in GPT-BERT.

    Args of the constructor:
      architecture: architecture of the model.
      newest: index of the newest state, the only one that counts at first.
    """

    def __init__(self, architecture: Architecture, newest: jax.Array):
        weights = jax.nn.one_hot(newest, 2 * architecture.num_layers + 1)
        self.weights = nnx.Param(weights, axes=("state",))

    def __call__(self, states: Sequence[jax.Array]) -> jax.Array:
        """The mix of arrays of one shape and dtype, which it keeps; computed in fp32."""
        weights = self.weights[...].astype(jnp.float32)
        mixed = sum(weights[i] * state.astype(jnp.float32) for i, state in enumerate(states))
        return jnp.asarray(mixed, states[0].dtype)

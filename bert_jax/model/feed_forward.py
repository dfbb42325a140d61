"""The feed-forward part of a layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.parameters import linear, make_norm, output_projection

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}


class FeedForward(nnx.Module):
    """Two dense layers with the activation between them; no dropout inside, as in BERT.

    A gated one multiplies the activation by another projection of its input. Reference: Shazeer
    2020, https://arxiv.org/abs/2002.05202.
    """

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
        layer: int | jax.Array = 0,
    ):
        sizes = (architecture.hidden_size, architecture.intermediate_size)
        bias = architecture.feed_forward_bias
        factor = (2 * (1 + layer)) ** -0.5 if architecture.depth_scaled_init else 1.0
        stddev = architecture.initializer_range * factor

        def inwards() -> nnx.Linear:
            return linear(
                ("embed", "mlp"), sizes, architecture, rngs, numerics, use_bias=bias, stddev=stddev
            )

        self.intermediate = inwards()
        if architecture.feed_forward == "glu":
            self.gate = inwards()
        if architecture.inner_norm:
            self.norm = make_norm(architecture, rngs, "mlp")
        self.output = output_projection(
            "mlp", architecture, rngs, numerics, use_bias=bias, factor=factor
        )
        self.architecture = architecture
        self.constrain = parallel.constrain

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] -> the same."""
        names = ("batch", "length", "mlp")
        inner = self.constrain(self.intermediate(hidden), names)
        inner = ACTIVATIONS[self.architecture.hidden_act](inner)
        if self.architecture.feed_forward == "glu":
            inner = inner * self.constrain(self.gate(hidden), names)
        if self.architecture.inner_norm:
            inner = self.norm(inner.astype(jnp.float32)).astype(hidden.dtype)
        return self.output(inner)

"""The feed-forward part of a layer."""

import jax
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.parameters import linear

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class FeedForward(nnx.Module):
    """Two dense layers with the activation between them; no dropout inside, as in BERT."""

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
    ):
        outer, inner = architecture.hidden_size, architecture.intermediate_size
        self.intermediate = linear(("embed", "mlp"), (outer, inner), architecture, rngs, numerics)
        self.output = linear(
            ("mlp", "embed"), (inner, outer), architecture, rngs, numerics, bias="hidden"
        )
        self.activation = ACTIVATIONS[architecture.hidden_act]
        self.constrain = parallel.constrain

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[batch, length, hidden_size] -> the same."""
        inner = self.constrain(self.intermediate(hidden), ("batch", "length", "mlp"))
        return self.output(self.activation(inner))

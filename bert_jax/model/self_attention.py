"""The attention part of a layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.attention import attention_probabilities
from bert_jax.model.parameters import linear


class SelfAttention(nnx.Module):
    """Query, key, value and output projections around `attention`."""

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
    ):
        sizes = (architecture.hidden_size, architecture.hidden_size)
        self.query = linear(("embed", "heads"), sizes, architecture, rngs, numerics)
        self.key = linear(("embed", "heads"), sizes, architecture, rngs, numerics)
        self.value = linear(("embed", "heads"), sizes, architecture, rngs, numerics)
        self.output = linear(("heads", "embed"), sizes, architecture, rngs, numerics, bias="hidden")
        self.num_heads = architecture.num_heads
        self.rotate = architecture.position_embedding.rotate
        self.dropout_rate = numerics.attention_dropout
        self.attend = parallel.attend
        self.constrain = parallel.constrain

    def __call__(
        self,
        hidden: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """[batch, length, hidden_size] -> the same; see `Bert` for the other arguments."""
        context = self.attend(
            self.rotate(self._heads(self.query(hidden)), position_ids),
            self.rotate(self._heads(self.key(hidden)), position_ids),
            self._heads(self.value(hidden)),
            segment_ids,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self.output(context.reshape(hidden.shape))

    def probabilities(
        self, hidden: jax.Array, position_ids: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        """[batch, heads, query, key] fp32; see `attention_probabilities`."""
        query = self.rotate(self._heads(self.query(hidden)), position_ids)
        key = self.rotate(self._heads(self.key(hidden)), position_ids)
        return attention_probabilities(query, key, segment_ids, jnp.float32).swapaxes(2, 3)

    def _heads(self, x: jax.Array) -> jax.Array:
        """[batch, length, hidden] -> [batch, length, heads, head_dim]."""
        x = x.reshape(*x.shape[:2], self.num_heads, -1)
        return self.constrain(x, ("batch", "length", "heads", None))

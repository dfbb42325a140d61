"""The attention part of a layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.attention import (
    Distances,
    Reach,
    attention_between,
    attention_probabilities,
)
from bert_jax.model.dropout import dropout, split_key
from bert_jax.model.parameters import linear, make_norm, output_projection


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
        bias = architecture.attention_bias

        def inwards() -> nnx.Linear:
            return linear(("embed", "heads"), sizes, architecture, rngs, numerics, use_bias=bias)

        self.query, self.key, self.value = inwards(), inwards(), inwards()
        if architecture.value_gate:
            self.gate = inwards()
        if architecture.inner_norm:
            self.norm = make_norm(architecture, rngs)
        self.output = output_projection("heads", architecture, rngs, numerics, use_bias=bias)
        self.architecture = architecture
        self.dropout_rate = numerics.attention_dropout
        self.attend = parallel.attend
        self.constrain = parallel.constrain

    def __call__(
        self,
        hidden: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
        *,
        is_local: bool = False,
        distances: jax.Array | None = None,
        causal: jax.Array | None = None,
    ) -> jax.Array:
        """[batch, length, hidden_size] -> the same; see `Bert` for the other arguments.

        `distances` are the `distance_vectors` of the position encoding, in the compute dtype.
        """
        if distances is not None:
            dropout_key, own_key = split_key(dropout_key, 2)
            distances = dropout(distances, self.dropout_rate, own_key, has_rows=False)
        query, key = self._query_and_key(hidden, position_ids, is_local)
        context = self.attend(
            query,
            key,
            self._heads(self.value(hidden)),
            segment_ids,
            reach=self._reach(is_local, distances)._replace(causal=causal),
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self._output(context, hidden)

    def step(
        self,
        hidden: jax.Array,
        cache: tuple[jax.Array, jax.Array],
        place: jax.Array,
        *,
        is_local: bool = False,
        distances: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """`__call__` for the next token of causal texts, whose earlier ones are in a cache.

        Args:
          hidden: [batch, texts, hidden_size], states of the next token of each text.
          cache: keys and values of all tokens, [batch, texts, length, heads, head_dim] each.
          place: int32, how many tokens are before the next one.
          is_local, distances: see `__call__`.

        Returns:
          What attention adds to `hidden`, and the cache with the next token.
        """
        places = jnp.broadcast_to(place, hidden.shape[:2])
        query, key = self._query_and_key(hidden, places, is_local)
        new = key, self._heads(self.value(hidden))
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, x[:, :, None], place, axis=2)
            for old, x in zip(cache, new)
        )

        def rows(x: jax.Array) -> jax.Array:
            """[batch, texts, ...] -> [batch * texts, ...]."""
            return x.reshape(-1, *x.shape[2:])

        ones = jnp.ones((hidden.shape[0] * hidden.shape[1], keys.shape[2]), jnp.int32)
        context = attention_between(
            rows(query)[:, None],
            rows(keys),
            rows(values),
            (ones[:, :1], ones),
            places=(place[None, None], jnp.arange(keys.shape[2])[None]),
            reach=self._reach(is_local, distances)._replace(causal=ones[:, :1] > 0),
        )
        return self._output(context, hidden), (keys, values)

    def probabilities(
        self,
        hidden: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        *,
        is_local: bool = False,
        distances: jax.Array | None = None,
    ) -> jax.Array:
        """[batch, heads, query, key] fp32; see `attention_probabilities`."""
        query, key = self._query_and_key(hidden, position_ids, is_local)
        reach = self._reach(is_local, distances)
        found = attention_probabilities(query, key, segment_ids, jnp.float32, reach=reach)
        return found.swapaxes(2, 3)

    def _output(self, context: jax.Array, hidden: jax.Array) -> jax.Array:
        """What attention adds to `hidden`, from its values [batch, length, heads, head_dim]."""
        context = context.reshape(hidden.shape)
        if self.architecture.value_gate:
            context *= jax.nn.gelu(self.gate(hidden), approximate=False)
        if self.architecture.inner_norm:
            context = self.norm(context.astype(jnp.float32)).astype(hidden.dtype)
        return self.output(context)

    def _query_and_key(
        self, hidden: jax.Array, position_ids: jax.Array, is_local: bool
    ) -> tuple[jax.Array, jax.Array]:
        rotate = self.architecture.position_embedding.rotate
        query, key = self._heads(self.query(hidden)), self._heads(self.key(hidden))
        return (
            rotate(query, position_ids, is_local=is_local),
            rotate(key, position_ids, is_local=is_local),
        )

    def _reach(self, is_local: bool, vectors: jax.Array | None) -> Reach:
        encoding, heads = self.architecture.position_embedding, self.architecture.num_heads
        distances, buckets = None, encoding.buckets_of_distances()
        if vectors is not None and buckets is not None:
            query, key = (
                self.constrain(project(vectors).reshape(len(vectors), heads, -1), names)
                for project in (self.query, self.key)
                for names in ((None, "heads", None),)
            )
            distances = Distances(query, key, buckets)
        window = self.architecture.local_window if is_local else None
        return Reach(window, encoding.slopes(heads), distances)

    def _heads(self, x: jax.Array) -> jax.Array:
        """[batch, length, hidden] -> [batch, length, heads, head_dim]."""
        x = x.reshape(*x.shape[:2], self.architecture.num_heads, -1)
        return self.constrain(x, ("batch", "length", "heads", None))


class CrossAttention(SelfAttention):
    """Attention to the states of an encoder, from those of a decoder; positions are not used."""

    def keys_and_values(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[batch, source, hidden_size] -> [batch, source, heads, head_dim], each."""
        return self._heads(self.key(states)), self._heads(self.value(states))

    def attend_to(
        self,
        hidden: jax.Array,
        keys_and_values: tuple[jax.Array, jax.Array],
        segments: tuple[jax.Array, jax.Array],
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """[batch, length, hidden_size] -> the same.

        Args:
          hidden: the decoder's states.
          keys_and_values: of the encoder's states.
          segments: segment ids [batch, length] of the decoder's rows, [batch, source] of the
            encoder's; positions attend to those with equal ids.
          dropout_key: a typed PRNG key; None turns dropout off.
        """
        context = attention_between(
            self._heads(self.query(hidden)),
            *keys_and_values,
            segments,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self._output(context, hidden)

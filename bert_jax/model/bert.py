"""The BERT encoder: embeddings, post-LN Transformer layers, pooler.

Reference: Devlin et al. 2019, https://arxiv.org/abs/1810.04805.

The modules take plain values and arrays. They know neither mesh nor configuration: parallelism
comes in through `constrain`, a function that pins an activation's sharding by the names of its
axes.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.model.attention import Attend, attention_probabilities
from bert_jax.model.dropout import dropout

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]

LARGE_VOCAB = 2**14
ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def unconstrained(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """The `Constrain` of a single device: leaves `x` alone."""
    del names
    return x


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the embedding table: `vocab_size` rounded up to whole TPU lanes.

    A large one to a multiple of 1024, so that it splits evenly over a thousand devices: 30,522
    becomes 30,720.
    """
    multiple = 128 if vocab_size < LARGE_VOCAB else 1024
    return -(-vocab_size // multiple) * multiple


def initializer(stddev: float) -> nnx.Initializer:
    """Truncated normal, cut at two `stddev`, variance not corrected for the cut (as Google's)."""
    return nnx.initializers.truncated_normal(stddev, lower=-2.0, upper=2.0)


def sinusoidal_positions(max_positions: int, hidden_size: int) -> np.ndarray:
    """[max_positions, hidden_size] fp32: the fixed encoding of Vaswani et al. 2017, section 3.5."""
    rates = 10_000.0 ** (-np.arange(0, hidden_size, 2) / hidden_size)
    angles = np.arange(max_positions)[:, None] * rates
    table = np.zeros((max_positions, hidden_size), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)[:, : hidden_size // 2]
    return table


def layer_norm(hidden_size: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm that computes and returns fp32, whatever the compute dtype.

    The variance is E[x^2] - E[x]^2, so that one pass gives both moments, and one gives both sums of
    the gradient.
    """
    return nnx.LayerNorm(hidden_size, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)


@jax.custom_vjp
def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of an embedding table as fp32; their gradients are added up in fp32 too.

    Args:
      table: [rows, hidden] in any float type, or [copies, rows, hidden].
      ids: [batch, length] int32; with copies, each serves its part of the batch.

    Returns:
      [batch, length, hidden] fp32.
    """
    tables = table.reshape(-1, *table.shape[-2:])
    found = jax.vmap(lambda table, ids: table[ids])(tables, ids.reshape(len(tables), -1))
    return found.reshape(*ids.shape, -1).astype(jnp.float32)


def _lookup_forward(table, ids):
    return lookup(table, ids), (table, ids)


def _lookup_backward(residuals, gradient):
    table, ids = residuals
    zeros = jnp.zeros((math.prod(table.shape[:-2]), *table.shape[-2:]), jnp.float32)
    ids = ids.reshape(len(zeros), -1)
    gradient = gradient.reshape(*ids.shape, -1)
    total = jax.vmap(lambda zeros, ids, gradient: zeros.at[ids].add(gradient))(zeros, ids, gradient)
    return total.reshape(table.shape).astype(table.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def split_key(key: jax.Array | None, num: int) -> list[jax.Array | None]:
    """`num` keys, or as many None where dropout is off."""
    return [None] * num if key is None else list(jax.random.split(key, num))


class Embeddings(nnx.Module):
    """Word + position + token type embeddings, LayerNorm, dropout."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        max_position_embeddings: int,
        type_vocab_size: int,
        position_embedding: str,
        dropout_rate: float,
        layer_norm_eps: float,
        initializer_range: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        init = initializer(initializer_range)

        def table(rows: int) -> nnx.Embed:
            return nnx.Embed(rows, hidden_size, embedding_init=init, rngs=rngs)

        self.word = table(padded_vocab_size(vocab_size))
        if position_embedding == "learned":
            self.position = table(max_position_embeddings)
        self.token_type = table(type_vocab_size)
        self.norm = layer_norm(hidden_size, layer_norm_eps, rngs)
        self.max_position_embeddings = max_position_embeddings
        self.position_embedding = position_embedding
        self.initializer_range = initializer_range
        self.dropout_rate = dropout_rate
        self.dtype = dtype

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        if self.position_embedding == "learned":
            positions = lookup(self.position.embedding[...], position_ids)
        else:
            # Vaswani et al. scale the words up to the encoding; here it is scaled down to them.
            # LayerNorm follows, so only the ratio counts.
            table = sinusoidal_positions(self.max_position_embeddings, self.word.features)
            positions = self.initializer_range * jnp.asarray(table)[position_ids]
        words = lookup(self.word.embedding[...], input_ids)
        types = lookup(self.token_type.embedding[...], token_type_ids)
        hidden = words + positions + types
        return dropout(self.norm(hidden).astype(self.dtype), self.dropout_rate, dropout_key)


class SelfAttention(nnx.Module):
    """Query, key, value and output projections around `attention`."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        dropout_rate: float,
        initializer_range: float,
        dtype: jnp.dtype,
        attend: Attend,
        constrain: Constrain,
        rngs: nnx.Rngs,
    ):
        options = {"kernel_init": initializer(initializer_range), "dtype": dtype, "rngs": rngs}
        self.query = nnx.Linear(hidden_size, hidden_size, **options)
        self.key = nnx.Linear(hidden_size, hidden_size, **options)
        self.value = nnx.Linear(hidden_size, hidden_size, **options)
        self.output = nnx.Linear(hidden_size, hidden_size, **options)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.attend = attend
        self.constrain = constrain

    def __call__(
        self, hidden: jax.Array, segment_ids: jax.Array, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        context = self.attend(
            self._heads(self.query(hidden)),
            self._heads(self.key(hidden)),
            self._heads(self.value(hidden)),
            segment_ids,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self.output(context.reshape(hidden.shape))

    def probabilities(self, hidden: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """[batch, heads, query, key] fp32; see `attention_probabilities`."""
        query, key = self._heads(self.query(hidden)), self._heads(self.key(hidden))
        return attention_probabilities(query, key, segment_ids, jnp.float32).swapaxes(2, 3)

    def _heads(self, x):
        """[batch, length, hidden] -> [batch, length, heads, head_dim]."""
        x = x.reshape(*x.shape[:2], self.num_heads, -1)
        return self.constrain(x, ("batch", "length", "heads", None))


class FeedForward(nnx.Module):
    """Two dense layers with the activation between them; no dropout inside, as in BERT."""

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str,
        initializer_range: float,
        dtype: jnp.dtype,
        constrain: Constrain,
        rngs: nnx.Rngs,
    ):
        options = {"kernel_init": initializer(initializer_range), "dtype": dtype, "rngs": rngs}
        self.intermediate = nnx.Linear(hidden_size, intermediate_size, **options)
        self.output = nnx.Linear(intermediate_size, hidden_size, **options)
        self.hidden_act = hidden_act
        self.constrain = constrain

    def __call__(self, hidden: jax.Array) -> jax.Array:
        inner = self.constrain(self.intermediate(hidden), ("batch", "length", "mlp"))
        return self.output(ACTIVATIONS[self.hidden_act](inner))


class Layer(nnx.Module):
    """One post-LN Transformer layer: LayerNorm follows each residual sum."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        hidden_act: str,
        hidden_dropout: float,
        attention_dropout: float,
        layer_norm_eps: float,
        initializer_range: float,
        dtype: jnp.dtype,
        attend: Attend,
        constrain: Constrain,
        rngs: nnx.Rngs,
    ):
        common = {"initializer_range": initializer_range, "dtype": dtype, "rngs": rngs}
        self.attention = SelfAttention(
            hidden_size=hidden_size,
            num_heads=num_heads,
            dropout_rate=attention_dropout,
            attend=attend,
            constrain=constrain,
            **common,
        )
        self.attention_norm = layer_norm(hidden_size, layer_norm_eps, rngs)
        self.feed_forward = FeedForward(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            hidden_act=hidden_act,
            constrain=constrain,
            **common,
        )
        self.feed_forward_norm = layer_norm(hidden_size, layer_norm_eps, rngs)
        self.hidden_dropout = hidden_dropout
        self.dtype = dtype
        self.constrain = constrain

    def __call__(
        self, hidden: jax.Array, segment_ids: jax.Array, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        keys = split_key(dropout_key, 3)
        update = self.attention(hidden, segment_ids, keys[0])
        hidden = self._add_and_norm(self.attention_norm, hidden, update, keys[1])
        update = self.feed_forward(hidden)
        return self._add_and_norm(self.feed_forward_norm, hidden, update, keys[2])

    def _add_and_norm(self, norm, hidden, update, key):
        update = dropout(update, self.hidden_dropout, key)
        hidden = norm(hidden.astype(jnp.float32) + update.astype(jnp.float32)).astype(self.dtype)
        return self.constrain(hidden, ("batch", "length", "hidden"))


class Encoder(nnx.Module):
    """A stack of layers whose parameters carry a leading layer axis.

    `scan_layers` compiles one layer and loops over it; without it the loop is unrolled, which costs
    compile time and lets the compiler schedule across layers. Parameters are the same either way.
    `remat` recomputes activations in the backward pass: "none" keeps all, "dots" keeps the results
    of the dense layers, "full" keeps only each layer's input.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        scan_layers: bool,
        remat: str,
        gather_layer: Callable[[Any], Any],
        rngs: nnx.Rngs,
        **layer_options,
    ):
        @nnx.split_rngs(splits=num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs):
            return Layer(rngs=rngs, **layer_options)

        self.layers = stack(rngs)
        self.num_layers = num_layers
        self.scan_layers = scan_layers
        self.remat = remat
        self.gather_layer = gather_layer

    def __call__(
        self,
        hidden: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
        all_layers: bool = False,
    ) -> jax.Array:
        graphdef, params = nnx.split(self.layers)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.num_layers)

        def layer(hidden, params_and_key):
            params, key = params_and_key
            params = nnx.to_pure_dict(params)
            layer = nnx.merge(graphdef, self.gather_layer(params))
            output = layer(hidden, segment_ids, key)
            return output, output if all_layers else None

        if self.remat != "none":
            # Inside a scan the loop itself keeps XLA from undoing the rematerialisation.
            layer = jax.checkpoint(
                layer, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan_layers
            )
        unroll = 1 if self.scan_layers else self.num_layers
        last, outputs = jax.lax.scan(layer, hidden, (params, keys), unroll=unroll)
        return jnp.concatenate([hidden[None], outputs]) if all_layers else last


class Bert(nnx.Module):
    """BERT encoder, with or without its pooler.

    Args of the constructor:
      vocab_size: of the tokenizer; the word table has `padded_vocab_size(vocab_size)` rows.
      num_layers, hidden_size, num_heads, intermediate_size: `num_heads` divides `hidden_size`.
      max_position_embeddings, type_vocab_size: table sizes.
      hidden_act: "gelu" (erf, as Hugging Face) or "gelu_tanh" (as Google's later releases).
      position_embedding: "learned" or "sinusoidal".
      hidden_dropout, attention_dropout: rates; active only where a `dropout_key` is passed.
      layer_norm_eps: 1e-12 in BERT.
      initializer_range: stddev of the truncated normal of all weights.
      dtype: of matrix products and activations; parameters, LayerNorm and softmax are fp32.
      scan_layers, remat: see `Encoder`.
      attend: `bert_jax.model.attention.attention`, or one that computes the same.
      constrain: pins an activation's sharding by axis names.
      gather_layer: brings the parameters of one layer together before it runs.
      with_pooler: have the dense layer on [CLS] that sentence heads read.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        max_position_embeddings: int,
        type_vocab_size: int,
        hidden_act: str,
        position_embedding: str,
        hidden_dropout: float,
        attention_dropout: float,
        layer_norm_eps: float,
        initializer_range: float,
        dtype: jnp.dtype,
        scan_layers: bool,
        remat: str,
        attend: Attend,
        constrain: Constrain,
        gather_layer: Callable[[Any], Any],
        rngs: nnx.Rngs,
        with_pooler: bool = True,
    ):
        common = {
            "hidden_size": hidden_size,
            "layer_norm_eps": layer_norm_eps,
            "initializer_range": initializer_range,
            "dtype": dtype,
            "rngs": rngs,
        }
        self.embeddings = Embeddings(
            vocab_size=vocab_size,
            max_position_embeddings=max_position_embeddings,
            type_vocab_size=type_vocab_size,
            position_embedding=position_embedding,
            dropout_rate=hidden_dropout,
            **common,
        )
        self.encoder = Encoder(
            num_layers=num_layers,
            scan_layers=scan_layers,
            remat=remat,
            num_heads=num_heads,
            intermediate_size=intermediate_size,
            hidden_act=hidden_act,
            hidden_dropout=hidden_dropout,
            attention_dropout=attention_dropout,
            attend=attend,
            constrain=constrain,
            gather_layer=gather_layer,
            **common,
        )
        if with_pooler:
            self.pooler = nnx.Linear(
                hidden_size,
                hidden_size,
                kernel_init=initializer(initializer_range),
                dtype=dtype,
                rngs=rngs,
            )
        self.constrain = constrain

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
        all_layers: bool = False,
    ) -> jax.Array:
        """Encodes rows of tokens.

        Args:
          input_ids, token_type_ids, position_ids: [batch, length] int32.
          segment_ids: [batch, length] int32; positions attend within equal ids, 0 is padding.
          dropout_key: a typed PRNG key; None turns dropout off.
          all_layers: return what every layer gives, after the embeddings.

        Returns:
          [batch, length, hidden_size] in the compute dtype; of all layers
          [num_layers + 1, batch, length, hidden_size].
        """
        keys = split_key(dropout_key, 2)
        hidden = self.embeddings(input_ids, token_type_ids, position_ids, keys[0])
        hidden = self.constrain(hidden, ("batch", "length", "hidden"))
        return self.encoder(hidden, segment_ids, keys[1], all_layers)

    def pool(self, hidden: jax.Array) -> jax.Array:
        """tanh(dense(.)) of the hidden states [..., hidden] of [CLS]."""
        return jnp.tanh(self.pooler(hidden))

    def attention_probabilities(
        self, hidden_states: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        """How much each position of each layer takes of each other one.

        Args:
          hidden_states: of all layers, as `__call__` returns them.
          segment_ids: [batch, length] int32.

        Returns:
          [num_layers, batch, heads, query, key] fp32.
        """
        graphdef, params = nnx.split(self.encoder.layers)

        def probabilities(params_and_input):
            params, hidden = params_and_input
            layer = nnx.merge(graphdef, params)
            return layer.attention.probabilities(hidden, segment_ids)

        return jax.lax.map(probabilities, (params, hidden_states[:-1]))


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """[batch, length, hidden] and [batch, n] int32 -> [batch, n, hidden]."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)

"""The BERT encoder: embeddings, post-LN Transformer layers, pooler.

Reference: Devlin et al. 2019, https://arxiv.org/abs/1810.04805.

Modules are built from an `Architecture`, `Numerics` and `Parallel`, what the mesh adds. They know
neither the mesh nor the configuration of a run.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.dropout import dropout, split_key
from bert_jax.model.embeddings import Embeddings
from bert_jax.model.feed_forward import FeedForward
from bert_jax.model.parameters import axes_of, layer_axes, layer_norm, linear, stack_axes
from bert_jax.model.positions import restarting_positions
from bert_jax.model.self_attention import SelfAttention

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Layer(nnx.Module):
    """One post-LN Transformer layer: LayerNorm follows each residual sum."""

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
    ):
        self.attention = SelfAttention(architecture, numerics, parallel, rngs)
        self.attention_norm = layer_norm(architecture, rngs)
        self.feed_forward = FeedForward(architecture, numerics, parallel, rngs)
        self.feed_forward_norm = layer_norm(architecture, rngs)
        self.numerics = numerics
        self.constrain = parallel.constrain

    def __call__(
        self,
        hidden: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """[batch, length, hidden_size] -> the same; see `Bert` for the other arguments."""
        keys = split_key(dropout_key, 3)
        update = self.attention(hidden, position_ids, segment_ids, keys[0])
        hidden = self._add_and_norm(self.attention_norm, hidden, update, keys[1])
        update = self.feed_forward(hidden)
        return self._add_and_norm(self.feed_forward_norm, hidden, update, keys[2])

    def _add_and_norm(
        self, norm: nnx.LayerNorm, hidden: jax.Array, update: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        update = dropout(update, self.numerics.hidden_dropout, key)
        hidden = norm(hidden.astype(jnp.float32) + update.astype(jnp.float32))
        hidden = hidden.astype(jnp.dtype(self.numerics.compute_dtype))
        return self.constrain(hidden, ("batch", "length", "hidden"))


class Encoder(nnx.Module):
    """A stack of layers whose parameters have a leading layer axis.

    Parameters are the same whether `numerics` scans or unrolls the layers.
    """

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
    ):
        @nnx.split_rngs(splits=architecture.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(architecture, numerics, parallel, rngs)

        self.layers = stack(rngs)
        stack_axes(self.layers)
        self.gather_layer = parallel.gather_layer(layer_axes(axes_of(self.layers)))
        self.num_layers = architecture.num_layers
        self.numerics = numerics

    def __call__(
        self,
        hidden: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
        all_layers: bool = False,
    ) -> jax.Array:
        """The states after the last layer; with `all_layers`, `hidden` and all layers' states."""
        graphdef, params = nnx.split(self.layers)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.num_layers)
        remat, scan = self.numerics.remat, self.numerics.scan_layers

        def layer(hidden: jax.Array, params_and_key: Any) -> tuple[jax.Array, jax.Array | None]:
            params, key = params_and_key
            params = nnx.to_pure_dict(params)
            layer = nnx.merge(graphdef, self.gather_layer(params))
            output = layer(hidden, position_ids, segment_ids, key)
            return output, output if all_layers else None

        if remat != "none":
            # Inside a scan the loop itself keeps XLA from undoing the rematerialisation.
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
        unroll = 1 if scan else self.num_layers
        last, outputs = jax.lax.scan(layer, hidden, (params, keys), unroll=unroll)
        return last if outputs is None else jnp.concatenate([hidden[None], outputs])


class Bert(nnx.Module):
    """BERT encoder, with or without its pooler: the dense layer on [CLS] that some heads read."""

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
        *,
        with_pooler: bool = True,
    ):
        self.embeddings = Embeddings(architecture, numerics, rngs)
        self.encoder = Encoder(architecture, numerics, parallel, rngs)
        if with_pooler:
            sizes = (architecture.hidden_size, architecture.hidden_size)
            self.pooler = linear(("embed", "hidden"), sizes, architecture, rngs, numerics)
        self.constrain = parallel.constrain

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
          all_layers: return the embeddings and the output of every layer.

        Returns:
          [batch, length, hidden_size] in the compute dtype; with `all_layers`,
          [num_layers + 1, batch, length, hidden_size].
        """
        keys = split_key(dropout_key, 2)
        hidden = self.embeddings(input_ids, token_type_ids, position_ids, keys[0])
        hidden = self.constrain(hidden, ("batch", "length", "hidden"))
        return self.encoder(hidden, position_ids, segment_ids, keys[1], all_layers)

    def pool(self, hidden: jax.Array) -> jax.Array:
        """tanh(dense(.)) of the hidden states [..., hidden] of [CLS]."""
        return jnp.tanh(self.pooler(hidden))

    def attention_probabilities(
        self, hidden_states: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        """How much each position attends to each other one, in each layer.

        Args:
          hidden_states: states of all layers, as `__call__` returns them.
          segment_ids: [batch, length] int32; examples of a row have different ids, and positions
            restart in each.

        Returns:
          [num_layers, batch, heads, query, key] fp32.
        """
        graphdef, params = nnx.split(self.encoder.layers)
        position_ids = restarting_positions(segment_ids)

        def probabilities(params_and_input: Any) -> jax.Array:
            params, hidden = params_and_input
            layer = nnx.merge(graphdef, params)
            return layer.attention.probabilities(hidden, position_ids, segment_ids)

        return jax.lax.map(probabilities, (params, hidden_states[:-1]))


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """[batch, length, hidden] and [batch, n] int32 -> [batch, n, hidden]."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)

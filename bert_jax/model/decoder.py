"""A decoder: the layers of a BERT, causal and with attention to an encoder, write a text.

Reference: Rothe et al. 2020, https://arxiv.org/abs/1907.12461. The decoder is a BERT of the
encoder's architecture, `decoder`, or the encoder itself, whose weights it then shares. Only
`cross_attention` is new: in each layer, between self-attention and feed-forward.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.bert import Bert, Layer, LayerKind, scan_kinds
from bert_jax.model.dropout import dropout, split_key
from bert_jax.model.heads import (
    DECODER,
    IMPOSSIBLE,
    MASKED_LM,
    Batch,
    Head,
    Rows,
    Sums,
)
from bert_jax.model.losses import cross_entropy
from bert_jax.model.parameters import Params, axes_of, layer_axes, make_norm, stack_axes
from bert_jax.model.positions import restarting_positions
from bert_jax.model.self_attention import CrossAttention

# Keys and values [batch, source, heads, head_dim] of an encoder's states, or those of the tokens
# that a decoder has written, [batch, texts, length, heads, head_dim]; stacked over layers.
KeysAndValues = tuple[jax.Array, jax.Array]


class CrossLayer(nnx.Module):
    """What a layer of a decoder has besides that of an encoder."""

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
    ):
        self.attention = CrossAttention(architecture, numerics, parallel, rngs)
        self.norm = make_norm(architecture, rngs)

    def __call__(
        self,
        layer: Layer,
        hidden: jax.Array,
        keys_and_values: KeysAndValues,
        segments: tuple[jax.Array, jax.Array],
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """States [batch, length, hidden_size] after attention to the encoder, from those before.

        Args:
          layer: the layer around it.
          hidden: its states after self-attention.
          keys_and_values, segments: see `CrossAttention.attend_to`.
          dropout_key: a typed PRNG key; None turns dropout off.
        """
        keys = split_key(dropout_key, 2)
        read = layer.normalized(self.norm, hidden) if layer.is_pre_norm else hidden
        update = self.attention.attend_to(read, keys_and_values, segments, keys[0])
        update = dropout(update, layer.numerics.hidden_dropout, keys[1])
        return layer.add(hidden, update, self.norm)


# (layer, attention to the encoder, kind of the layer, states, what is the layer's own) -> (states,
# output)
Part = Callable[[Layer, CrossLayer, LayerKind, jax.Array, Any], tuple[jax.Array, Any]]


class CrossLayers(nnx.Module):
    """The cross-attention of all layers, whose parameters have a leading layer axis."""

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
    ):
        @nnx.split_rngs(splits=architecture.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> CrossLayer:
            return CrossLayer(architecture, numerics, parallel, rngs)

        self.layers = stack(rngs)
        stack_axes(self.layers)
        self.gather_layer = parallel.gather_layer(layer_axes(axes_of(self.layers)))

    def decode(
        self,
        bert: Bert,
        input_ids: jax.Array,
        segment_ids: jax.Array,
        states: jax.Array,
        source_segments: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The decoder's states for rows of given tokens, each of which sees none after it.

        Args:
          bert: the other parts of the decoder's layers, and its embeddings.
          input_ids: [batch, length] int32.
          segment_ids: [batch, length] int32, 0 is padding; a text has the number of its source.
          states: [batch, source, hidden_size], the encoder's.
          source_segments: [batch, source] int32, its segment ids.
          dropout_key: a typed PRNG key; None turns dropout off.

        Returns:
          [batch, length, hidden_size] in the compute dtype.
        """
        keys = split_key(dropout_key, 2)
        position_ids = restarting_positions(segment_ids)
        types, causal = jnp.zeros_like(input_ids), jnp.ones(input_ids.shape, bool)
        hidden = bert.embeddings(input_ids, types, position_ids, segment_ids, keys[0])
        hidden = bert.constrain(hidden, ("batch", "length", "hidden"))
        distances = bert.embeddings.distances()

        def part(
            layer: Layer, cross: CrossLayer, kind: LayerKind, hidden: jax.Array, key: Any
        ) -> tuple[jax.Array, None]:
            keys = split_key(key, 4)
            hidden = layer.attend(
                hidden, position_ids, segment_ids, keys[:2], kind, distances, causal
            )
            memory = cross.attention.keys_and_values(states)
            hidden = cross(layer, hidden, memory, (segment_ids, source_segments), keys[2])
            return layer.add_feed_forward(hidden, keys[3]), None

        number = bert.architecture.num_layers
        own = None if keys[1] is None else jax.random.split(keys[1], number)
        return bert.finish(self._run(bert, part, hidden, own)[0])

    def memory(self, states: jax.Array) -> KeysAndValues:
        """Keys and values of an encoder's states [batch, source, hidden_size], for `step`."""
        graphdef, params = nnx.split(self.layers)

        def of_layer(params: Any) -> KeysAndValues:
            layer = nnx.merge(graphdef, self.gather_layer(nnx.to_pure_dict(params)))
            return layer.attention.keys_and_values(states)

        return jax.lax.map(of_layer, params)

    def step(
        self,
        bert: Bert,
        input_ids: jax.Array,
        place: jax.Array,
        memory: KeysAndValues,
        source_segments: jax.Array,
        cache: KeysAndValues,
    ) -> tuple[jax.Array, KeysAndValues]:
        """`decode` for the next token of several texts of each source.

        Args:
          bert: see `decode`.
          input_ids: [batch, texts] int32, the token of each text.
          place: int32, how many tokens are before it.
          memory: keys and values of the encoder's states.
          source_segments: [batch, source] int32, 0 is padding, all else one source.
          cache: keys and values of the texts.

        Returns:
          States [batch, texts, hidden_size] of the token, and the cache with it.
        """
        ones, places = jnp.ones_like(input_ids), jnp.broadcast_to(place, input_ids.shape)
        hidden = bert.embeddings(input_ids, jnp.zeros_like(input_ids), places, ones)
        distances = bert.embeddings.distances()
        segments = ones, (source_segments > 0).astype(jnp.int32)

        def part(
            layer: Layer, cross: CrossLayer, kind: LayerKind, hidden: jax.Array, own: Any
        ) -> tuple[jax.Array, KeysAndValues]:
            memory, cache = own
            read = layer.attention_input(hidden, kind)
            update, cache = layer.attention.step(
                read, cache, place, is_local=kind.is_local, distances=distances
            )
            hidden = layer.add_attention(hidden, update, None)
            hidden = cross(layer, hidden, memory, segments)
            return layer.add_feed_forward(hidden, None), cache

        hidden, cache = self._run(bert, part, hidden, (memory, cache))
        return bert.finish(hidden), cache

    def _run(self, bert: Bert, part: Part, hidden: jax.Array, own: Any) -> tuple[jax.Array, Any]:
        """States after all layers, and the outputs of `part`; `own` has a leading layer axis."""
        encoder = bert.encoder
        graphdefs, params = zip(*map(nnx.split, (encoder.layers, self.layers)))
        gather = encoder.gather_layer, self.gather_layer

        def of_layer(kind: LayerKind, hidden: jax.Array, sliced: Any) -> tuple[jax.Array, Any]:
            params, own = sliced
            layer, cross = (
                nnx.merge(graphdef, each(nnx.to_pure_dict(values)))
                for graphdef, each, values in zip(graphdefs, gather, params)
            )
            return part(layer, cross, kind, hidden, own)

        return scan_kinds(of_layer, hidden, (params, own), encoder.kinds, encoder.numerics)


def writer_of(model: Any) -> Any:
    """The `BertWithHeads` that writes: the decoder of a model, or the model itself."""
    return getattr(model, DECODER, model)


def with_decoder(params: Params) -> Params:
    """The parameters of a model with a decoder that begins as a copy of it.

    The head that scores words is then the decoder's.
    """
    bert = {name: values for name, values in params["bert"].items() if name != "pooler"}
    heads = {name: params[name] for name in (MASKED_LM.part,) if name in params}
    others = {name: values for name, values in params.items() if name not in heads}
    return others | {DECODER: {"bert": bert} | heads}


@dataclass(frozen=True)
class Generation(Head):
    """Writes the target of each example: predicts each of its tokens from those before it.

    Labels of examples are int32 [n, length + 1], `[CLS] target [SEP]` and then -1. In rows they are
    [rows, length, 3]: the token that the decoder reads, the next one, -1 for none, and the segment
    id of the source in its row, 0 for none.

    Attributes:
      shared: whether encoder and decoder have the same weights.
      label_smoothing: share of the target probability that is spread over all words (Szegedy et al.
        2016, https://arxiv.org/abs/1512.00567).
    """

    shared: bool = False
    label_smoothing: float = 0.0

    dropout = False

    def for_scores(self) -> "Generation":
        return replace(self, label_smoothing=0.0)

    def parts(self, architecture: Architecture) -> tuple[str, ...]:
        """Cross-attention, and the decoder or, if the weights are shared, the head of words."""
        return (self.part, MASKED_LM.part if self.shared else DECODER)

    def logits(
        self,
        model: Any,
        hidden: jax.Array,
        batch: Batch,
        dropout_rate: float = 0.0,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """fp32 [rows, length, padded_vocab]; the rate of the dropout is that of the model."""
        inputs, _, segments = jnp.moveaxis(batch["labels"], -1, 0)
        writer = writer_of(model)
        states = model.cross_attention.decode(
            writer.bert, inputs, segments, hidden, batch["segment_ids"], dropout_key
        )
        return MASKED_LM.apply(writer, states)

    def weights(self, labels: jax.Array) -> jax.Array:
        """fp32, 1 where there is a token to predict, else 0."""
        return (labels[..., 1] >= 0).astype(jnp.float32)

    def sums(self, logits: jax.Array, labels: jax.Array, weights: jax.Array, batch: Batch) -> Sums:
        """The loss is the cross-entropy of a token in nats."""
        del batch
        sums = cross_entropy(logits, labels[..., 1], weights)
        if not self.label_smoothing:
            return sums
        known = logits > IMPOSSIBLE / 2  # not the padding of the vocabulary
        mean = jnp.where(known, logits, 0).sum(axis=-1) / known.sum(axis=-1)
        spread = jnp.sum((jax.nn.logsumexp(logits, axis=-1) - mean) * weights)
        loss = (1 - self.label_smoothing) * sums["loss"] + self.label_smoothing * spread
        return sums | {"loss": loss}

    def label_lengths(self, labels: np.ndarray) -> tuple[np.ndarray, int]:
        """Tokens that each target takes in a row, [n], and the length of these rows."""
        return np.maximum(np.sum(labels >= 0, axis=1) - 1, 0), labels.shape[1] - 1

    def labels_in_rows(self, labels: np.ndarray, rows: Rows) -> np.ndarray:
        """[rows, length, 3] int32; targets of a row follow each other as their sources do."""
        found = np.zeros((len(rows.rows["input_ids"]), labels.shape[1] - 1, 3), np.int32)
        found[..., 1] = -1
        filled = np.zeros(len(found), np.int64)
        lengths, _ = self.label_lengths(labels[rows.examples])
        for example, row, slot, length in zip(rows.examples, rows.row, rows.slot, lengths):
            place = slice(filled[row], filled[row] + length)
            found[row, place, 0] = labels[example, :length]
            found[row, place, 1] = labels[example, 1 : length + 1]
            found[row, place, 2] = slot + 1
            filled[row] += length
        return found

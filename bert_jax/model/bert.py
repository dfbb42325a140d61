"""The encoder: embeddings, Transformer layers, pooler.

Reference: Devlin et al. 2019, https://arxiv.org/abs/1810.04805. The fields of `Architecture` name
those of later blocks.

Modules are built from an `Architecture`, `Numerics` and `Parallel`, what the mesh adds. They know
neither the mesh nor the configuration of a run.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.dropout import dropout, split_key
from bert_jax.model.embeddings import Embeddings
from bert_jax.model.feed_forward import ACTIVATIONS, FeedForward
from bert_jax.model.mixing import Mixing
from bert_jax.model.parameters import Norm, axes_of, layer_axes, linear, make_norm, stack_axes
from bert_jax.model.positions import restarting_positions
from bert_jax.model.self_attention import SelfAttention

# (kind of a layer, carry, what is the layer's own) -> (carry, output)
Step = Callable[["LayerKind", Any, Any], tuple[Any, Any]]

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class LayerKind(NamedTuple):
    """What differs between the layers of a model, besides their parameters."""

    is_local: bool
    has_attention_norm: bool


class Layer(nnx.Module):
    """One Transformer layer, with norms after each residual sum, or before each part."""

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
        index: jax.Array,
    ):
        self.attention = SelfAttention(architecture, numerics, parallel, rngs)
        self.attention_norm = make_norm(architecture, rngs)
        self.feed_forward = FeedForward(architecture, numerics, parallel, rngs, index)
        self.feed_forward_norm = make_norm(architecture, rngs)
        if architecture.layer_mixing:
            self.attention_mixing = Mixing(architecture, 2 * index + 1)
            self.feed_forward_mixing = Mixing(architecture, 2 * index + 2)
        self.is_pre_norm = architecture.norm_position == "pre"
        self.numerics = numerics
        self.constrain = parallel.constrain

    def __call__(
        self,
        hidden: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None,
        kind: LayerKind,
        distances: jax.Array | None = None,
        states: Sequence[jax.Array] = (),
        causal: jax.Array | None = None,
    ) -> tuple[jax.Array, ...]:
        """One layer, from the output of the layer before it.

        Args:
          hidden: [batch, length, hidden_size] in the compute dtype.
          position_ids, segment_ids, dropout_key: see `Bert`.
          kind: kind of the layer.
          distances: see `SelfAttention`.
          states: with layer mixing, the embeddings and the results of all parts before.
          causal: see `Bert`.

        Returns:
          The output, in the shape of `hidden`; with layer mixing followed by `states` and the two
          of this layer.
        """
        keys = split_key(dropout_key, 3)
        hidden = self.attend(hidden, position_ids, segment_ids, keys[:2], kind, distances, causal)
        if states:
            states = (*states, hidden)
            hidden = self.attention_mixing(states)
        hidden = self.add_feed_forward(hidden, keys[2])
        if not states:
            return (hidden,)
        states = (*states, hidden)
        return self.feed_forward_mixing(states), *states

    def attend(
        self,
        hidden: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_keys: Sequence[jax.Array | None],
        kind: LayerKind,
        distances: jax.Array | None,
        causal: jax.Array | None,
    ) -> jax.Array:
        """The states after the attention of this layer; see `__call__`.

        `dropout_keys` are those of the attention, and of what it adds.
        """
        update = self.attention(
            self.attention_input(hidden, kind),
            position_ids,
            segment_ids,
            dropout_keys[0],
            is_local=kind.is_local,
            distances=distances,
            causal=causal,
        )
        return self.add_attention(hidden, update, dropout_keys[1])

    def attention_input(self, hidden: jax.Array, kind: LayerKind) -> jax.Array:
        """What the attention of this layer reads, from the layer's input."""
        if self.is_pre_norm and kind.has_attention_norm:
            return self.normalized(self.attention_norm, hidden)
        return hidden

    def add_attention(
        self, hidden: jax.Array, update: jax.Array, dropout_key: jax.Array | None
    ) -> jax.Array:
        """The states after the attention, whose output is `update`."""
        update = dropout(update, self.numerics.hidden_dropout, dropout_key)
        return self.add(hidden, update, self.attention_norm)

    def add_feed_forward(self, hidden: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """The states after the feed-forward, from those before it."""
        update = self.feed_forward(
            self.normalized(self.feed_forward_norm, hidden) if self.is_pre_norm else hidden
        )
        update = dropout(update, self.numerics.rate("feed_forward_dropout"), dropout_key)
        return self.add(hidden, update, self.feed_forward_norm)

    def add(self, hidden: jax.Array, update: jax.Array, norm: Norm) -> jax.Array:
        """The residual sum, normalized unless norms come before each part."""
        total = hidden.astype(jnp.float32) + update.astype(jnp.float32)
        total = total if self.is_pre_norm else norm(total)
        total = total.astype(jnp.dtype(self.numerics.compute_dtype))
        return self.constrain(total, ("batch", "length", "hidden"))

    def normalized(self, norm: Norm, hidden: jax.Array) -> jax.Array:
        """What a part reads if norms come before it, in the dtype of `hidden`."""
        normalized = norm(hidden.astype(jnp.float32)).astype(hidden.dtype)
        return self.constrain(normalized, ("batch", "length", "hidden"))


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
        def stack(rngs: nnx.Rngs, index: Any) -> Layer:
            return Layer(architecture, numerics, parallel, rngs, index)

        self.layers = stack(rngs, np.arange(architecture.num_layers))
        stack_axes(self.layers)
        self.make_gather = parallel.gather_layer
        self.gather_layer = self.make_gather(layer_axes(axes_of(self.layers)))
        self.kinds = tuple(
            LayerKind(architecture.is_local(layer), layer > 0 or architecture.first_norm)
            for layer in range(architecture.num_layers)
        )
        self.mixes = architecture.layer_mixing
        self.numerics = numerics

    def replace_dense(self, make: Callable[[str, nnx.Linear], nnx.Module]) -> None:
        """Puts other modules in the place of the dense layers.

        Args:
          make: takes the name of a dense layer, such as "attention/query", and the layer, whose
            parameters are stacked; gives the module for its place.
        """
        modules = [
            (path, node)
            for path, node in nnx.iter_graph(self.layers)
            if isinstance(node, nnx.Module)
        ]
        for path, module in modules:
            for name, part in [*vars(module).items()]:
                if isinstance(part, nnx.Linear):
                    setattr(module, name, make("/".join(map(str, (*path, name))), part))
        self.gather_layer = self.make_gather(layer_axes(axes_of(self.layers)))

    def __call__(
        self,
        hidden: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
        all_layers: bool = False,
        distances: jax.Array | None = None,
        causal: jax.Array | None = None,
    ) -> jax.Array:
        """The states after the last layer; with `all_layers`, `hidden` and all layers' states."""
        graphdef, params = nnx.split(self.layers)
        keys = None if dropout_key is None else jax.random.split(dropout_key, len(self.kinds))

        def layer(
            kind: LayerKind, carry: tuple[jax.Array, ...], params_and_key: Any
        ) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
            (hidden, *states), (params, key) = carry, params_and_key
            params = nnx.to_pure_dict(params)
            layer = nnx.merge(graphdef, self.gather_layer(params))
            carry = layer(hidden, position_ids, segment_ids, key, kind, distances, states, causal)
            return carry, carry[0] if all_layers else None

        # Mixing layers carry more and more states, which no loop does.
        run, carry = (run_layers, (hidden, hidden)) if self.mixes else (scan_kinds, (hidden,))
        (last, *_), outputs = run(layer, carry, (params, keys), self.kinds, self.numerics)
        return last if outputs is None else jnp.concatenate([hidden[None], outputs])


def scan_kinds(
    step: Step, carry: Any, stacked: Any, kinds: Sequence[LayerKind], numerics: Numerics
) -> tuple[Any, Any]:
    """`jax.lax.scan` over layers, of which each has a kind that is known when it is compiled.

    Where kinds repeat, one repetition is compiled: after the first layers that do not fit in, the
    loop runs over repetitions, and what is left follows it.

    Args:
      step: (kind, carry, slice of `stacked`) -> (carry, output).
      carry: its first value.
      stacked: tree of arrays with a leading layer axis.
      kinds: kind of each layer.
      numerics: whether to scan or unroll, and what to recompute.

    Returns:
      The last carry, and the outputs stacked over the layers; None if they are None.
    """
    before, period = repetition(kinds)
    repetitions = (len(kinds) - before) // period
    if repetitions == 1 and period > 1:
        return run_layers(step, carry, stacked, kinds, numerics)
    looped, after = repetitions * period, (len(kinds) - before) % period
    parts = _split(stacked, [size for size in (before, looped, after) if size])
    outputs = []

    def repeated(carry: Any, layers: list[Any]) -> tuple[Any, list[Any]]:
        # A loop of one layer keeps XLA from undoing the rematerialisation.
        alone = numerics.scan_layers and period == 1
        repeating = kinds[before : before + period]
        return _run(step, carry, layers, repeating, numerics, prevent_cse=not alone)

    if before:
        carry, output = run_layers(step, carry, parts.pop(0), kinds[:before], numerics)
        outputs.append(output)
    rows = parts.pop(0)
    if period > 1:  # each layer of a repetition has its own stack, of which the loop takes slices
        rows = jax.tree.map(lambda x: x.reshape(-1, period, *x.shape[1:]), rows)
    unroll = 1 if numerics.scan_layers else repetitions
    own_rows = layers_of(rows, axis=1) if period > 1 else [rows]
    carry, found = jax.lax.scan(repeated, carry, own_rows, unroll=unroll)
    if period > 1:
        found = [jax.tree.map(lambda *x: jnp.stack(x, 1).reshape(-1, *x[0].shape[1:]), *found)]
    outputs += found
    if after:
        carry, output = run_layers(step, carry, parts.pop(0), kinds[-after:], numerics)
        outputs.append(output)
    return carry, jax.tree.map(lambda *x: jnp.concatenate(x) if len(x) > 1 else x[0], *outputs)


def run_layers(
    step: Step, carry: Any, stacked: Any, kinds: Sequence[LayerKind], numerics: Numerics
) -> tuple[Any, Any]:
    """`scan_kinds` without a loop: each layer is compiled."""
    carry, outputs = _run(step, carry, layers_of(stacked), kinds, numerics)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)


def _run(
    step: Step,
    carry: Any,
    layers: Sequence[Any],
    kinds: Sequence[LayerKind],
    numerics: Numerics,
    *,
    prevent_cse: bool = True,
) -> tuple[Any, list[Any]]:
    outputs = []
    for kind, own in zip(kinds, layers):
        layer: Callable[[Any, Any], tuple[Any, Any]] = functools.partial(step, kind)
        if numerics.remat != "none":
            policy = REMAT_POLICIES[numerics.remat]
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=prevent_cse)
        carry, output = layer(carry, own)
        outputs.append(output)
    return carry, outputs


def layers_of(stacked: Any, axis: int = 0) -> list[Any]:
    """The slices of single layers, of a tree of arrays with a layer axis."""
    number = jax.tree.leaves(stacked)[0].shape[axis]
    parts = _split(stacked, [1] * number, axis)
    return [jax.tree.map(lambda x: x.squeeze(axis), part) for part in parts]


def _split(tree: Any, sizes: Sequence[int], axis: int = 0) -> list[Any]:
    """Consecutive parts of all arrays of a tree; their gradients are joined in one operation."""
    if len(sizes) == 1:
        return [tree]
    leaves, structure = jax.tree.flatten(tree)
    parts = zip(*(jax.lax.split(x, sizes, axis) for x in leaves))
    return [jax.tree.unflatten(structure, part) for part in parts]


def repetition(kinds: Sequence[LayerKind]) -> tuple[int, int]:
    """How many layers stand before those whose kinds repeat (0 or 1), and after how many layers."""
    return min(
        (
            (before, period)
            for before in (0, 1)
            for period in range(1, max(len(kinds), 2))
            if all(a == b for a, b in zip(kinds[before:], kinds[before + period :]))
        ),
        key=lambda found: (found[1], found[0]),
    )


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
        if architecture.final_norm:
            self.norm = make_norm(architecture, rngs)
        self.pooler: nnx.Linear | Transform
        if with_pooler and architecture.pooler == "transform":
            self.pooler = Transform(architecture, numerics, rngs, architecture.hidden_size)
        elif with_pooler:
            sizes = (architecture.hidden_size, architecture.hidden_size)
            bias = architecture.head_bias
            self.pooler = linear(
                ("embed", "hidden"), sizes, architecture, rngs, numerics, use_bias=bias
            )
        self.architecture = architecture
        self.constrain = parallel.constrain

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        dropout_key: jax.Array | None = None,
        all_layers: bool = False,
        causal: jax.Array | None = None,
        embeddings: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes rows of tokens.

        Args:
          input_ids, token_type_ids, position_ids: [batch, length] int32.
          segment_ids: [batch, length] int32; positions attend within equal ids, 0 is padding.
          dropout_key: a typed PRNG key; None turns dropout off.
          all_layers: return the embeddings and the output of every layer; a final norm applies to
            the last.
          causal: [batch, length] bool, positions that attend to none after them; None for none.
          embeddings: [batch, length, hidden_size] in the compute dtype, what the first layer reads;
            None for the embeddings of `input_ids`, which otherwise are not used.

        Returns:
          [batch, length, hidden_size] in the compute dtype; with `all_layers`,
          [num_layers + 1, batch, length, hidden_size].
        """
        keys = split_key(dropout_key, 2)
        hidden = embeddings
        if hidden is None:
            hidden = self.embeddings(input_ids, token_type_ids, position_ids, segment_ids, keys[0])
        hidden = self.constrain(hidden, ("batch", "length", "hidden"))
        distances = self.embeddings.distances()
        hidden = self.encoder(
            hidden, position_ids, segment_ids, keys[1], all_layers, distances, causal
        )
        if not self.architecture.final_norm:
            return hidden
        last = self.finish(hidden[-1] if all_layers else hidden)
        return hidden.at[-1].set(last) if all_layers else last

    def finish(self, hidden: jax.Array) -> jax.Array:
        """The output, from the states after the last layer."""
        if not self.architecture.final_norm:
            return hidden
        return self.norm(hidden.astype(jnp.float32)).astype(hidden.dtype)

    def pool(self, hidden: jax.Array) -> jax.Array:
        """The pooler's output for hidden states [..., hidden]: tanh(dense(.)) in BERT."""
        if isinstance(self.pooler, Transform):
            return self.pooler.transform(hidden)
        return ACTIVATIONS[self.architecture.pooler](self.pooler(hidden))

    def queries_keys_values(self, hidden: jax.Array, layer: int) -> tuple[jax.Array, ...]:
        """What the attention of a layer compares and adds up, before positions rotate it.

        Args:
          hidden: [batch, length, hidden_size], the states that the layer reads.
          layer: number of the layer, from 0.

        Returns:
          Queries, keys and values, each [batch, length, hidden_size] in the compute dtype.
        """
        graphdef, params = nnx.split(self.encoder.layers)
        own = layers_of(nnx.to_pure_dict(params))[layer]
        attending = nnx.merge(graphdef, self.encoder.gather_layer(own))
        hidden = attending.attention_input(hidden, self.encoder.kinds[layer])
        attention = attending.attention
        return attention.query(hidden), attention.key(hidden), attention.value(hidden)

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
        distances = self.embeddings.distances()

        def probabilities(
            kind: LayerKind, _: None, params_and_input: Any
        ) -> tuple[None, jax.Array]:
            params, hidden = params_and_input
            layer = nnx.merge(graphdef, params)
            hidden = layer.attention_input(hidden, kind)
            return None, layer.attention.probabilities(
                hidden, position_ids, segment_ids, is_local=kind.is_local, distances=distances
            )

        layers = (params, hidden_states[:-1])
        return scan_kinds(probabilities, None, layers, self.encoder.kinds, Numerics(remat="none"))[
            1
        ]


class Transform(nnx.Module):
    """Dense, activation, norm: what a decoder or a classifier reads."""

    def __init__(
        self, architecture: Architecture, numerics: Numerics, rngs: nnx.Rngs, outputs: int
    ):
        sizes = (architecture.hidden_size, outputs)
        bias = architecture.head_bias
        self.dense = linear(("embed", "hidden"), sizes, architecture, rngs, numerics, use_bias=bias)
        self.norm = make_norm(architecture, rngs, size=outputs)
        self.activation = ACTIVATIONS[architecture.hidden_act]

    def transform(self, hidden: jax.Array) -> jax.Array:
        """[..., hidden_size] -> [..., outputs], in fp32."""
        return self.norm(self.activation(self.dense(hidden)))


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """[batch, length, hidden] and [batch, n] int32 -> [batch, n, hidden]."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)

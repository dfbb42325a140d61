"""The programs of inference: functions of a whole batch of rows, to be compiled.

Each composes the functions of a model's parts (`bert_jax.inference.functions.part_functions`). Its
first arguments are these functions, the parameters, and `rows`: the arrays of a
`bert_jax.data.packing.Batch` on devices.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bert_jax.inference.functions import Function
from bert_jax.model.architecture import Architecture
from bert_jax.model.bert import gather_positions
from bert_jax.model.heads import NEXT_SENTENCE, Head
from bert_jax.model.losses import log_probability
from bert_jax.model.parameters import Params
from bert_jax.model.search import Search
from bert_jax.parallel import rules

POSITIONS = 16  # of which logits are computed at once
Functions = Mapping[str, Function]
Rows = Mapping[str, jax.Array]


def hidden_states(functions: Functions, params: Params, rows: Rows) -> jax.Array:
    """[num_layers + 1, rows, length, hidden] fp32: the embeddings and every layer."""
    names = ("input_ids", "token_type_ids", "position_ids", "segment_ids")
    return functions["encoder"](params, *(rows[name] for name in names))


def token_vectors(
    functions: Functions, params: Params, rows: Rows, *, layers: tuple[int, ...]
) -> jax.Array:
    """[rows, length, layers, hidden] fp32: one vector for each token and layer."""
    hidden = hidden_states(functions, params, rows)
    return jnp.stack([hidden[layer] for layer in layers], axis=2)


def mean_vectors(
    functions: Functions, params: Params, rows: Rows, *, layers: tuple[int, ...]
) -> jax.Array:
    """[rows, slots, layers, hidden] fp32: the mean over the tokens of each text."""
    hidden = token_vectors(functions, params, rows, layers=layers)
    slots = 1 + jnp.arange(rows["cls_positions"].shape[1])
    member = (rows["segment_ids"][:, None] == slots[:, None]).astype(jnp.float32)
    share = member / jnp.maximum(member.sum(axis=-1, keepdims=True), 1)
    return jnp.einsum("ret,rtlh->relh", share, hidden, precision="highest")


def max_vectors(
    functions: Functions, params: Params, rows: Rows, *, layers: tuple[int, ...]
) -> jax.Array:
    """[rows, slots, layers, hidden] fp32: the largest values over the tokens of each text."""
    hidden = token_vectors(functions, params, rows, layers=layers)
    segments = 1 + rows["cls_positions"].shape[1]
    largest = functools.partial(jax.ops.segment_max, num_segments=segments)
    return jax.vmap(largest)(hidden, rows["segment_ids"])[:, 1:]


def cls_vectors(
    functions: Functions, params: Params, rows: Rows, *, layers: tuple[int, ...]
) -> jax.Array:
    """[rows, slots, layers, hidden] fp32: the [CLS] of each text."""
    hidden = token_vectors(functions, params, rows, layers=layers)
    return jnp.take_along_axis(hidden, rows["cls_positions"][:, :, None, None], axis=1)


def pooled_vectors(
    functions: Functions, params: Params, rows: Rows, *, layers: tuple[int, ...], pooling: str
) -> jax.Array:
    """[rows, slots, layers, hidden] fp32: the pooler's result for each text.

    Args:
      functions, params, rows: see the module.
      layers: layers whose states it reads.
      pooling: what it reads of a text; see `Architecture`.
    """
    read = mean_vectors if pooling == "mean" else cls_vectors
    vectors = read(functions, params, rows, layers=layers)
    return _on_last_axis(functions["pooler"], params, vectors)


# By the name of the pooling.
VECTORS: Mapping[str, Callable[..., jax.Array]] = {
    "mean": mean_vectors,
    "max": max_vectors,
    "cls": cls_vectors,
    "pooled": pooled_vectors,
    "tokens": token_vectors,
}


def logits(
    functions: Functions, params: Params, rows: Rows, *, head: Head, architecture: Architecture
) -> jax.Array:
    """[rows, slots, outputs] of a pooled head, else [rows, length, outputs]; fp32."""
    if head.pooled:
        pooling = architecture.pooling
        hidden = pooled_vectors(functions, params, rows, layers=(-1,), pooling=pooling)
    else:
        hidden = token_vectors(functions, params, rows, layers=(-1,))
        if head.uses_pooler(architecture):
            hidden = _on_last_axis(functions["pooler"], params, hidden)
    return _on_last_axis(functions[head.part], params, hidden[:, :, 0])


def follows(
    functions: Functions, params: Params, rows: Rows, *, architecture: Architecture
) -> jax.Array:
    """[rows, slots] fp32: probability that B follows A."""
    found = logits(functions, params, rows, head=NEXT_SENTENCE, architecture=architecture)
    return jax.nn.softmax(found)[..., 0]


def attention(functions: Functions, params: Params, rows: Rows) -> jax.Array:
    """[num_layers, rows, heads, query, key] fp32, which sums to 1 over `key`."""
    hidden = hidden_states(functions, params, rows)
    return functions["attention"](params, hidden, rows["segment_ids"])


def rollout(maps: jax.Array) -> jax.Array:
    """[rows, query, key] fp32: how much of each position's last state comes from each position.

    Heads count equally, and the residual sum as much as the attention (Abnar and Zuidema 2020,
    https://arxiv.org/abs/2005.00928).

    Args:
      maps: from `attention`.
    """
    itself = jnp.eye(maps.shape[-1])

    def through(before: jax.Array, layer: jax.Array) -> tuple[jax.Array, None]:
        mixed = (layer.mean(axis=1) + itself) / 2
        return jnp.einsum("rqk,rkj->rqj", mixed, before, precision="highest"), None

    first = jnp.broadcast_to(itself, (maps.shape[1], *itself.shape))
    return jax.lax.scan(through, first, maps)[0]


def attributions(
    functions: Functions,
    params: Params,
    rows: Rows,
    places: jax.Array,
    shares: jax.Array,
    *,
    head: Head,
    architecture: Architecture,
    from_zero: bool,
) -> dict[str, jax.Array]:
    """How much each token contributes to the logits that `rows["target"]` chooses.

    Args:
      functions, params, rows: see the module; `rows` also has what
        `bert_jax.inference.attributions.Layout.pack` adds. The functions are those of a live model.
      places, shares: fp32 [calls, points] and [calls, points, 2]; see `Layout.points`.
      head: head of the logits.
      architecture: architecture of the model.
      from_zero: whether the baseline is the vector 0 instead of the embeddings of `baseline_ids`.

    Returns:
      fp32 [rows, length] `integrated_gradients`, `input_x_gradient` and `rollout`; fp32 [rows]
      `score` and `baseline_score`, the chosen logits of the texts and of their baselines.
    """

    def scores(embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
        def encoder(params: Params, *inputs: jax.Array) -> jax.Array:
            return functions["encoder"](params, *inputs, None, embeddings)

        known = {**functions, "encoder": encoder}
        found = logits(known, params, rows, head=head, architecture=architecture)
        of_rows = jnp.sum(found * rows["target"], axis=(1, 2))
        return of_rows.sum(), of_rows

    states = hidden_states(functions, params, rows)
    stop = states[0]
    start = jnp.zeros_like(stop)
    if not from_zero:
        start = hidden_states(functions, params, {**rows, "input_ids": rows["baseline_ids"]})[0]

    def add(totals: jax.Array, points: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def at(place: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jax.grad(scores, has_aux=True)(start + place * (stop - start))

        places, shares = points
        gradients, of_rows = jax.vmap(at)(places)
        sums = jnp.einsum("ps,prlh->srlh", shares, gradients, precision="highest")
        return totals + sums, of_rows

    totals, of_rows = jax.lax.scan(add, jnp.zeros((2, *stop.shape)), (places, shares))
    at_text, at_baseline = of_rows.reshape(-1, len(stop))[:2]
    flow = rollout(functions["attention"](params, states, rows["segment_ids"]))
    return {
        "integrated_gradients": jnp.sum(totals[0] * (stop - start), axis=-1),
        "input_x_gradient": jnp.sum(totals[1] * stop, axis=-1),
        "rollout": jnp.einsum("rq,rqk->rk", rows["read"], flow, precision="highest"),
        "score": at_text,
        "baseline_score": at_baseline,
    }


def best_words(
    functions: Functions, params: Params, rows: Rows, *, mesh: Mesh, top_k: int
) -> tuple[jax.Array, jax.Array]:
    """Probabilities (fp32) and ids (int32) of the likeliest words, both [rows, slots, top_k].

    Args:
      functions, params, rows: see the module; `rows` also has the words' `positions` [rows, slots].
      mesh: mesh over which rows are split.
      top_k: number of words.
    """
    hidden = gather_positions(hidden_states(functions, params, rows)[-1], rows["positions"])
    words = _on_last_axis(functions["masked_lm"], params, hidden)
    # Left to XLA, every device would gather the logits of all rows.
    spec = rules.spec(("batch",))
    best = functools.partial(jax.lax.top_k, k=top_k)
    best = jax.shard_map(best, mesh=mesh, in_specs=spec, out_specs=spec)
    return best(jax.nn.softmax(words))


def write(
    functions: Functions, params: Params, rows: Rows, *, mesh: Mesh, search: Search
) -> jax.Array:
    """[rows, search.max_length] int32: what the decoder writes for the text of each row.

    Each device of the mesh searches for the texts of its rows.
    """
    spec = rules.spec(("batch",))
    return jax.shard_map(
        lambda params, rows: functions["write"](params, rows, search),
        mesh=mesh,
        in_specs=(jax.P(), spec),
        out_specs=spec,
        check_vma=False,
    )(params, rows)


def log_probabilities(functions: Functions, params: Params, rows: Rows) -> jax.Array:
    """[rows, slots] fp32: log probability of the target of each slot, in nats.

    Args:
      functions, params, rows: see the module; `rows` also has `positions` and `targets`, as from
        `bert_jax.data.masked_copies.pack_copies`.
    """
    hidden = gather_positions(hidden_states(functions, params, rows)[-1], rows["positions"])
    words = _on_last_axis(functions["masked_lm"], params, hidden)
    return log_probability(words, rows["targets"])


def next_log_probabilities(functions: Functions, params: Params, rows: Rows) -> jax.Array:
    """[rows, length] fp32: log probability of the next token in the row, in nats.

    Each position sees itself and those before it in its example. The functions are those of a live
    model.
    """
    inputs = (rows[name] for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids"))
    causal = jnp.ones(rows["input_ids"].shape, bool)
    hidden = functions["encoder"](params, *inputs, causal)[-1]
    targets = jnp.roll(rows["input_ids"], -1, axis=1)

    def at_position(position: tuple[jax.Array, jax.Array]) -> jax.Array:
        return log_probability(functions["masked_lm"](params, position[0]), position[1])

    # Some positions of all rows at a time: the logits of all would be large.
    by_position = (hidden.swapaxes(0, 1), targets.swapaxes(0, 1))
    return jax.lax.map(at_position, by_position, batch_size=POSITIONS).swapaxes(0, 1)


def _on_last_axis(function: Function, params: Params, x: jax.Array) -> jax.Array:
    """Applies a function of [n, hidden] to [..., hidden]."""
    return function(params, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

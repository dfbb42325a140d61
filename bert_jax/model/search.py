"""Writes texts with a model that has a decoder: greedy search and beam search.

Reference: transformers, generation/utils.py, `_sample` without sampling and `_beam_search` with
`early_stopping=False`, whose results these are, token for token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.errors import UserError
from bert_jax.fields import NOT_NEGATIVE, POSITIVE, field
from bert_jax.model.decoder import KeysAndValues, writer_of
from bert_jax.model.heads import MASKED_LM, Batch

UNLIKELY = -1e9  # the score of what is out of the race


@dataclass(frozen=True)
class Search:
    """How texts are written."""

    beams: int = field(4, "texts that are kept at each step; 1 is greedy search", bounds=POSITIVE)
    max_length: int = field(128, "most tokens of a text, its [SEP] included", bounds=POSITIVE)
    min_length: int = field(0, "fewest tokens of a text before its [SEP]", bounds=NOT_NEGATIVE)
    length_penalty: float = field(
        1.0,
        "beams are compared by their log probability / tokens**length_penalty: 0 prefers short "
        "texts, more than 1 long ones",
    )
    no_repeat_ngram: int = field(
        0, "no sequence of so many tokens is written twice; 0 for no limit", bounds=NOT_NEGATIVE
    )

    def check(self, path: str) -> None:
        """Raises UserError if the lengths contradict each other."""
        if self.min_length >= self.max_length:
            raise UserError(
                f"{path}.min_length={self.min_length} must be less than "
                f"{path}.max_length={self.max_length}, which counts the [SEP]"
            )


class Ids(NamedTuple):
    """The special tokens of a text: what the decoder reads first, what ends it, what fills it."""

    start: int
    end: int
    pad: int


# (tokens [batch, texts], place, cache) -> fp32 log probabilities [batch, texts, vocab], cache
Step = Callable[[jax.Array, jax.Array, KeysAndValues], tuple[jax.Array, KeysAndValues]]


def write_texts(model: Any, batch: Batch, search: Search, ids: Ids) -> jax.Array:
    """A text for each source.

    Args:
      model: a `BertWithHeads` that has `cross_attention`.
      batch: rows of one source each; see `BertWithHeads.encode`.
      search: how to write.
      ids: special tokens.

    Returns:
      int32 [rows, max_length]: the tokens with the last [SEP], if the text has ended, then [PAD].
    """
    writer = writer_of(model)
    memory = model.cross_attention.memory(model.encode(batch))
    vocab = writer.bert.architecture.vocab_size

    def step(
        tokens: jax.Array, place: jax.Array, cache: KeysAndValues
    ) -> tuple[jax.Array, KeysAndValues]:
        states, cache = model.cross_attention.step(
            writer.bert, tokens, place, memory, batch["segment_ids"], cache
        )
        logits = MASKED_LM.apply(writer, states)[..., :vocab]
        return jax.nn.log_softmax(logits), cache

    layers, rows, _, heads, size = memory[0].shape
    shape = (layers, rows, search.beams, search.max_length, heads, size)
    cache = (jnp.zeros(shape, memory[0].dtype), jnp.zeros(shape, memory[1].dtype))
    tokens = jnp.full((rows, search.beams, search.max_length + 1), ids.pad, jnp.int32)
    tokens = tokens.at[:, :, 0].set(ids.start)
    run = _greedy if search.beams == 1 else _beams
    return run(step, tokens, cache, search, ids)[:, 1:]


def _allowed(
    scores: jax.Array, tokens: jax.Array, place: jax.Array, search: Search, ids: Ids
) -> jax.Array:
    """Log probabilities [batch, texts, vocab], -inf for tokens that may not come next.

    Args:
      scores: the model's.
      tokens: int32 [batch, texts, max_length + 1], the texts so far.
      place: int32, index of the last token.
      search: how to write.
      ids: special tokens.
    """
    if search.min_length:
        is_end = jnp.arange(scores.shape[-1]) == ids.end
        scores = jnp.where(is_end & (place < search.min_length), -jnp.inf, scores)
    if size := search.no_repeat_ngram:
        length = tokens.shape[2]
        starts = jnp.arange(max(length - size + 1, 0))
        # The n-gram that the next token would end begins with the last n - 1 tokens.
        same = jnp.broadcast_to(starts + size - 1 <= place, (*tokens.shape[:2], len(starts)))
        for offset in range(size - 1):
            at = jnp.maximum(place + offset - (size - 2), 0)
            last = jax.lax.dynamic_slice_in_dim(tokens, at, 1, axis=2)
            same &= tokens[:, :, offset : offset + len(starts)] == last
        ends = tokens[:, :, size - 1 :]

        def ban(scores: jax.Array, ends: jax.Array, same: jax.Array) -> jax.Array:
            return scores.at[ends].min(jnp.where(same, -jnp.inf, jnp.inf))

        scores = jax.vmap(jax.vmap(ban))(scores, ends, same)
    return scores


def _greedy(
    step: Step, tokens: jax.Array, cache: KeysAndValues, search: Search, ids: Ids
) -> jax.Array:
    """int32 [batch, max_length + 1]: always the likeliest token."""
    State = tuple[jax.Array, jax.Array, jax.Array, KeysAndValues]

    def goes_on(state: State) -> jax.Array:
        place, _, ended, _ = state
        return (place < search.max_length) & ~jnp.all(ended)

    def write(state: State) -> State:
        place, tokens, ended, cache = state
        last = jax.lax.dynamic_index_in_dim(tokens, place, axis=2, keepdims=False)
        scores, cache = step(last, place, cache)
        scores = _allowed(scores, tokens, place, search, ids)
        new = jnp.where(ended, ids.pad, jnp.argmax(scores, axis=-1).astype(jnp.int32))
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, new, place + 1, axis=2)
        return place + 1, tokens, ended | (new == ids.end), cache

    first = (jnp.int32(0), tokens, jnp.zeros(tokens.shape[:2], bool), cache)
    return jax.lax.while_loop(goes_on, write, first)[1][:, 0]


class _Race(NamedTuple):
    """The state of a beam search.

    Attributes:
      place: int32, index of the last token.
      tokens, scores: int32 [batch, beams, length], fp32 [batch, beams]: texts that go on, and their
        log probabilities.
      cache: keys and values of their tokens.
      ended, ended_scores, is_ended: the same of texts that have ended, their log probabilities
        divided by the penalty, and bool [batch, beams], whether there is one.
      can_improve: bool [batch], whether a text that goes on may become better than these.
      can_go_on: bool, whether any text goes on.
    """

    place: jax.Array
    tokens: jax.Array
    scores: jax.Array
    cache: KeysAndValues
    ended: jax.Array
    ended_scores: jax.Array
    is_ended: jax.Array
    can_improve: jax.Array
    can_go_on: jax.Array


def _beams(
    step: Step, tokens: jax.Array, cache: KeysAndValues, search: Search, ids: Ids
) -> jax.Array:
    """int32 [batch, max_length + 1]: the best text of a beam search."""
    batch, beams, _ = tokens.shape

    def goes_on(race: _Race) -> jax.Array:
        return race.can_go_on & jnp.any(race.can_improve)

    def write(race: _Race) -> _Race:
        place, is_last = race.place, race.place + 1 == search.max_length
        last = jax.lax.dynamic_index_in_dim(race.tokens, place, axis=2, keepdims=False)
        scores, cache = step(last, place, race.cache)
        scores = _allowed(scores, race.tokens, place, search, ids) + race.scores[:, :, None]
        # Twice as many as go on, for the case that all of the best end.
        found, index = jax.lax.top_k(scores.reshape(batch, -1), 2 * beams)
        beam, new = index // scores.shape[2], index % scores.shape[2]
        tokens = jnp.take_along_axis(race.tokens, beam[:, :, None], axis=1)
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, new, place + 1, axis=2)
        ends = (new == ids.end) | is_last

        going, chosen = jax.lax.top_k(found + UNLIKELY * ends, beams)
        parent = jnp.take_along_axis(beam, chosen, axis=1)
        cache = jax.tree.map(
            lambda x: jnp.take_along_axis(x, parent[None, :, :, None, None, None], axis=2), cache
        )

        # Only the best may end; the others are there to go on.
        ends_now = ends & (jnp.arange(2 * beams) < beams)
        penalty = (place + 1).astype(jnp.float32) ** search.length_penalty
        final = found / penalty + UNLIKELY * ~race.can_improve[:, None] + UNLIKELY * ~ends_now
        best, kept = jax.lax.top_k(jnp.concatenate([race.ended_scores, final], axis=1), beams)
        ended = jnp.concatenate([race.ended, tokens], axis=1)
        is_ended = jnp.concatenate([race.is_ended, ends_now], axis=1)
        is_ended = jnp.take_along_axis(is_ended, kept, axis=1)
        worst = jnp.where(is_ended, best.min(axis=1, keepdims=True), UNLIKELY)
        return _Race(
            place + 1,
            jnp.take_along_axis(tokens, chosen[:, :, None], axis=1),
            going,
            cache,
            jnp.take_along_axis(ended, kept[:, :, None], axis=1),
            best,
            is_ended,
            race.can_improve & jnp.any(going[:, :1] / penalty > worst, axis=1),
            ~jnp.all(ends),
        )

    unlikely = jnp.full((batch, beams), UNLIKELY, jnp.float32)
    first = _Race(
        place=jnp.int32(0),
        tokens=tokens,
        scores=unlikely.at[:, 0].set(0.0),  # all beams begin as one
        cache=cache,
        ended=tokens,
        ended_scores=unlikely,
        is_ended=jnp.zeros((batch, beams), bool),
        can_improve=jnp.ones(batch, bool),
        can_go_on=jnp.bool_(True),
    )
    return jax.lax.while_loop(goes_on, write, first).ended[:, 0]

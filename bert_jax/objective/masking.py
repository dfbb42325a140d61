"""Masked LM examples, drawn on the device: which positions to predict and what is seen there.

Every draw is keyed by (seed, epoch, example, position), so the masks of an example depend neither
on the row that it was packed into nor on batch size, device count or mesh.

Positions are chosen in units that are masked whole or not at all, in random order:

- "token": a unit is a piece (Devlin et al. 2019, https://arxiv.org/abs/1810.04805);
- "whole_word": a unit is a piece with its `##` continuations (Google's whole word masking, 2019);
- "span": units are words, taken span by span; spans have geometric length, p = 0.2, at most 10
  words (Joshi et al. 2020, https://arxiv.org/abs/1907.10529).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

STRATEGIES = ("token", "whole_word", "span")
SPAN_STOP_PROBABILITY = 0.2
SPAN_MAX_WORDS = 10
_UINT32_RANGE = 2.0**32


@dataclasses.dataclass(frozen=True, eq=False)
class Masking:
    """How to mask, and what of the vocabulary is needed for it.

    Attributes:
      strategy: one of `STRATEGIES`.
      masked_lm_prob: share of an example's tokens to predict, [CLS] and [SEP] counted.
      max_predictions_per_seq: at most so many predictions in one example.
      max_predictions_per_row: slots of a row, at least what its examples need together.
      mask_id: id of [MASK].
      is_special: [vocab_size] bool, never predicted and never a random replacement.
      is_continuation: [vocab_size] bool, pieces that continue a word.
    """

    strategy: str
    masked_lm_prob: float
    max_predictions_per_seq: int
    max_predictions_per_row: int
    mask_id: int
    is_special: np.ndarray
    is_continuation: np.ndarray

    def num_to_predict(self, max_length: int) -> np.ndarray:
        """[max_length + 1] int32: predictions in an example of each length, 0 for length 0."""
        wanted = np.round(self.masked_lm_prob * np.arange(max_length + 1)).astype(np.int32)
        return np.clip(
            wanted, np.minimum(np.arange(max_length + 1), 1), self.max_predictions_per_seq
        )


def mask_tokens(
    batch: dict[str, jax.Array], masking: Masking, key: jax.Array
) -> dict[str, jax.Array]:
    """Chooses the positions to predict and hides them.

    Of the chosen tokens 80 % become [MASK], 10 % a random ordinary token and 10 % stay, drawn for
    each token by itself. The budget of an example of length n is round(masked_lm_prob * n)
    predictions, at least one and at most `max_predictions_per_seq`. Units are taken in random order
    up to the first that does not fit; what remains of the budget goes to units of one token, so a
    long word is skipped, never split. Token masking always uses the whole budget.

    Args:
      batch: `input_ids`, `segment_ids`, `position_ids` [rows, length] int32 and `example_ids`
        [rows, examples, 2] int32, (epoch, example).
      masking: see `Masking`.
      key: a typed threefry key made from the seed alone.

    Returns:
      The batch with `input_ids` masked and, in order of position, `masked_lm_positions`,
      `masked_lm_ids` [rows, max_predictions_per_row] int32 and `masked_lm_weights` fp32, 0 in
      unused slots.
    """
    input_ids, segment_ids = batch["input_ids"], batch["segment_ids"]
    is_candidate = (segment_ids > 0) & ~jnp.asarray(masking.is_special)[input_ids]
    order_bits, action_bits, token_bits, span_bits = _bits_by_position(batch, key)

    unit_start, order_bits = _units(masking, input_ids, is_candidate, order_bits, span_bits)
    chosen = _choose_units(masking, segment_ids, is_candidate, unit_start, order_bits)

    ordinary_ids = jnp.asarray(np.flatnonzero(~masking.is_special), jnp.int32)
    random_ids = ordinary_ids[token_bits % len(ordinary_ids)]
    seen_ids = jnp.where(action_bits < 0.9 * _UINT32_RANGE, random_ids, input_ids)
    seen_ids = jnp.where(action_bits < 0.8 * _UINT32_RANGE, masking.mask_id, seen_ids)

    # A stable sort by "not chosen" lists the chosen positions first, in order.
    slots = masking.max_predictions_per_row
    positions = jnp.argsort(~chosen, axis=1, stable=True)[:, :slots].astype(jnp.int32)
    weights = jnp.take_along_axis(chosen, positions, axis=1)
    return batch | {
        "input_ids": jnp.where(chosen, seen_ids, input_ids),
        "masked_lm_positions": jnp.where(weights, positions, 0),
        "masked_lm_ids": jnp.where(weights, jnp.take_along_axis(input_ids, positions, axis=1), 0),
        "masked_lm_weights": weights.astype(jnp.float32),
    }


def _bits_by_position(batch, key):
    """Four uint32 arrays [rows, length], keyed by (epoch, example, position)."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in))
    epochs, examples = batch["example_ids"][..., 0], batch["example_ids"][..., 1]
    keys = fold(fold(jnp.broadcast_to(key, epochs.shape), epochs), examples)
    owner = jnp.maximum(batch["segment_ids"] - 1, 0)
    keys = fold(jnp.take_along_axis(keys, owner, axis=1), batch["position_ids"])
    bits = jax.vmap(jax.vmap(lambda k: jax.random.bits(k, (4,))))(keys)
    return jnp.moveaxis(bits, -1, 0)


def _units(masking, input_ids, is_candidate, order_bits, span_bits):
    """[rows, length]: where a unit begins (bool) and what decides its turn (uint32).

    A unit ends before the next one or before a position that is no candidate.
    """
    if masking.strategy == "token":
        return is_candidate, order_bits
    after_break = ~jnp.pad(is_candidate, ((0, 0), (1, 0)))[:, :-1]
    continues = jnp.asarray(masking.is_continuation)[input_ids] & ~after_break
    word_start = is_candidate & ~continues
    if masking.strategy == "whole_word":
        return word_start, order_bits
    # Lengths are geometric if every word begins a new span with the same probability.
    begins = after_break | (span_bits < SPAN_STOP_PROBABILITY * _UINT32_RANGE)
    word = jnp.cumsum(word_start, axis=1)
    first_word = jax.lax.cummax(jnp.where(word_start & begins, word, 0), axis=1)
    span_start = word_start & ((word - first_word) % SPAN_MAX_WORDS == 0)
    return word_start, jnp.take_along_axis(order_bits, _last_start(span_start), axis=1)


def _choose_units(masking, segment_ids, is_candidate, unit_start, order_bits):
    """[rows, length] bool: the positions of the units that are taken."""
    rows, length = segment_ids.shape
    index = jnp.broadcast_to(jnp.arange(length), (rows, length))
    ends = jnp.where(unit_start | ~is_candidate, index, length)
    next_end = jax.lax.cummin(ends, axis=1, reverse=True)
    next_end = jnp.pad(next_end[:, 1:], ((0, 0), (0, 1)), constant_values=length)
    size = jnp.where(unit_start, next_end - index, 0)

    example_length = jnp.sum(segment_ids[:, :, None] == segment_ids[:, None, :], axis=2)
    budget = jnp.asarray(masking.num_to_predict(length))[example_length]

    # By example, then by turn; units of a span share a turn and stay in order. Others come last.
    owner = jnp.where(unit_start, segment_ids, length + 1)
    owner, _, index, size, budget = jax.lax.sort(
        (owner, order_bits, index, size, budget), dimension=1, num_keys=3
    )
    first = jnp.pad(owner[:, :-1], ((0, 0), (1, 0)), constant_values=-1) != owner

    def cumsum_in_example(values):
        total = jnp.cumsum(values, axis=1)
        return total - jax.lax.cummax(jnp.where(first, total - values, 0), axis=1)

    is_unit = size > 0
    taken = is_unit & (cumsum_in_example(size) <= budget)
    used = cumsum_in_example(jnp.where(taken, size, 0))
    filler = is_unit & ~taken & (size == 1)
    taken |= filler & (used + cumsum_in_example(filler.astype(size.dtype)) <= budget)

    _, taken = jax.lax.sort((index, taken), dimension=1, num_keys=1)
    return is_candidate & jnp.take_along_axis(taken, _last_start(unit_start), axis=1)


def _last_start(starts):
    """[rows, length] bool -> int32: the nearest start at or before each position."""
    return jax.lax.cummax(jnp.where(starts, jnp.arange(starts.shape[1]), 0), axis=1)

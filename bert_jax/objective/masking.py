"""Masking on the device: draws the positions to predict and the tokens shown there.

Every draw is keyed by (seed, epoch, example, position), so the masks of an example depend neither
on the row that it was packed into nor on batch size, device count or mesh.

Positions are chosen in units, in random order; a unit is masked whole or not at all. Each kind of
`Masking` defines what a unit is.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.errors import UserError
from bert_jax.fields import FRACTION, NOT_NEGATIVE, POSITIVE, Choice, field
from bert_jax.model.losses import nats_and_correct

_UINT32_RANGE = 2.0**32


@dataclass(frozen=True)
class Masking(Choice):
    """How to choose the positions to predict. All kinds share these fields."""

    masked_lm_prob: float = field(
        0.15, "share of an example's tokens to predict, [CLS] and [SEP] counted", bounds=FRACTION
    )
    final_masked_lm_prob: float | None = field(
        None,
        "share at the end of the run or phase, which the share moves to in a straight line; None "
        "keeps masked_lm_prob",
        bounds="(0, 1)",
    )
    heldout_masked_lm_prob: float | None = field(
        None, "share in held-out examples; None for masked_lm_prob", bounds="(0, 1)"
    )
    max_predictions_per_seq: int = field(20, "maximum predictions per example", bounds=POSITIVE)
    mask_share: float = field(0.8, "share of the chosen tokens that become [MASK]", bounds="[0, 1]")
    random_share: float = field(
        0.1, "share of them that become another token; the rest stay", bounds="[0, 1]"
    )

    def check(self, path: str) -> None:
        """Raises UserError if nothing would be predicted, or shares exceed 1."""
        if self.masked_lm_prob == 0:
            raise UserError(f"{path}.masked_lm_prob must be above 0: nothing would be predicted")
        if self.mask_share + self.random_share > 1:
            raise UserError(
                f"{path}.mask_share={self.mask_share} and {path}.random_share={self.random_share} "
                "are above 1 together"
            )

    def num_to_predict(
        self, max_length: int, progress: jax.Array | None = None
    ) -> np.ndarray | jax.Array:
        """[max_length + 1] int32: predictions for an example of each length, 0 for length 0.

        Args:
          max_length: the largest length.
          progress: fp32, share of the steps that are done; None for the share at the start.
        """
        lengths = np.arange(max_length + 1)
        share: float | jax.Array = self.masked_lm_prob
        if progress is not None and self.final_masked_lm_prob is not None:
            share += (self.final_masked_lm_prob - share) * progress
        round_ = np.round if isinstance(share, float) else jnp.round
        wanted = round_(share * lengths).astype(np.int32)
        return wanted.clip(np.minimum(lengths, 1), self.max_predictions_per_seq)

    def for_heldout(self) -> "Masking":
        """The masking of held-out examples, which does not change during a run."""
        share = self.heldout_masked_lm_prob or self.masked_lm_prob
        return dataclasses.replace(self, masked_lm_prob=share, final_masked_lm_prob=None)

    def predictions_per_row(self, max_seq_length: int, max_examples: int | None) -> int:
        """The most predictions that the examples of a row can need together.

        Args:
          max_seq_length: tokens per row.
          max_examples: maximum examples per row; None if examples do not share rows.
        """
        if max_examples is None:
            return self.max_predictions_per_seq
        share = max(self.masked_lm_prob, self.final_masked_lm_prob or 0.0)
        shortest = 3  # [CLS] token [SEP]
        lengths = range(shortest, max_seq_length + 1)
        # The most that rounding and "at least one" add to the share of one example.
        excess = max(max(1, round(share * length)) - share * length for length in lengths)
        worst = math.floor(share * max_seq_length + excess * max_examples)
        return min(worst, self.max_predictions_per_seq * max_examples)

    def units(
        self,
        is_continuation: jax.Array,
        is_candidate: jax.Array,
        order_bits: jax.Array,
        more_bits: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Where units begin, and the order in which they are taken.

        A unit ends before the next one or before a position that is not a candidate.

        Args:
          is_continuation: [rows, length] bool: the token continues a word.
          is_candidate: [rows, length] bool: the token may be predicted.
          order_bits, more_bits: [rows, length] random uint32.

        Returns:
          [rows, length] bool, true where a unit begins, and [rows, length] uint32: units with lower
          values are taken first; those with equal values follow one another from left to right.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class TokenMasking(Masking, name="token"):
    """A unit is a piece (Devlin et al. 2019, https://arxiv.org/abs/1810.04805)."""

    def units(
        self,
        is_continuation: jax.Array,
        is_candidate: jax.Array,
        order_bits: jax.Array,
        more_bits: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        return is_candidate, order_bits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WordRates:
    """How often the words of a vocabulary are masked, a part of the training state.

    Attributes:
      rates: fp32 [vocab_size], the rate of each word as a multiple of the mean of all.
      correct: fp32 [vocab_size], how often each was predicted rightly since the last renewal.
      masked: fp32 [vocab_size], how often it was to be predicted since then.
    """

    rates: jax.Array
    correct: jax.Array
    masked: jax.Array

    @classmethod
    def start(cls, vocab_size: int) -> "WordRates":
        """Before the first step: all words are equal."""
        return cls(jnp.ones(vocab_size), jnp.zeros(vocab_size), jnp.zeros(vocab_size))


@dataclass(frozen=True)
class AdaptiveMasking(TokenMasking, name="adaptive"):
    """A unit is a piece; those that the model predicts badly are taken more often.

    Reference: Edman and Fraser 2025, https://arxiv.org/abs/2510.20475 ("hard"), and
    https://github.com/serdardoesml/babylm25, train_mask.py.
    """

    renew_every: int = field(200, "steps of the run after which rates are renewed", bounds=POSITIVE)
    memory: float = field(0.2, "share of the old rates in the new ones", bounds=FRACTION)
    least_rate: float = field(
        0.0125, "lowest rate of a word, as a multiple of the mean", bounds=NOT_NEGATIVE
    )

    def for_heldout(self) -> Masking:
        """Without the rates: the masks are those of `token`."""
        masking = super().for_heldout()
        return TokenMasking(
            **{x.name: getattr(masking, x.name) for x in dataclasses.fields(TokenMasking)}
        )

    def renewed(
        self, words: WordRates, steps: jax.Array, correct: jax.Array, masked: jax.Array
    ) -> WordRates:
        """What is known after a step.

        Every `renew_every` steps each word gets `memory` times its rate and (1 - `memory`) times
        the share of wrong predictions since the last renewal, (wrong + 1/2) / (masked + 1).

        Args:
          words: what was known before.
          steps: int32, steps done.
          correct, masked: see `WordRates`, of the step alone.
        """
        correct, masked = words.correct + correct, words.masked + masked
        wrong = (masked - correct + 0.5) / (masked + 1)
        rates = self.memory * words.rates + (1 - self.memory) * wrong
        rates = jnp.maximum(rates, self.least_rate)
        is_due = steps % self.renew_every == 0
        renewed = WordRates(rates / jnp.mean(rates), 0 * correct, 0 * masked)
        kept = WordRates(words.rates, correct, masked)
        return jax.tree.map(lambda new, old: jnp.where(is_due, new, old), renewed, kept)


def count_words(
    masking: "BoundMasking | None",
    batch: dict[str, jax.Array],
    logits: jax.Array,
    weights: jax.Array,
) -> dict[str, jax.Array]:
    """What `AdaptiveMasking.renewed` needs of a batch; empty for other maskings.

    Args:
      masking: what has masked the batch.
      batch: a masked batch.
      logits: [rows, slots, words] fp32, the predictions.
      weights: [rows, slots] fp32, 1 for predictions of masked words.

    Returns:
      "word_correct" and "word_masked", fp32 [vocab_size].
    """
    if masking is None or not isinstance(masking.masking, AdaptiveMasking):
        return {}
    ids, zeros = batch["masked_lm_ids"], jnp.zeros(len(masking.is_special))
    _, correct = nats_and_correct(jax.lax.stop_gradient(logits), ids)
    found = {"word_correct": weights * correct, "word_masked": weights}
    return {name: zeros.at[ids].add(values) for name, values in found.items()}


@dataclass(frozen=True)
class WholeWordMasking(Masking, name="whole_word"):
    """A unit is a word with all its pieces (Google's whole word masking, 2019)."""

    def units(
        self,
        is_continuation: jax.Array,
        is_candidate: jax.Array,
        order_bits: jax.Array,
        more_bits: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        return word_starts(is_continuation, is_candidate), order_bits


@dataclass(frozen=True)
class SpanMasking(Masking, name="span"):
    """Units are words, taken span by span (Joshi et al. 2020, https://arxiv.org/abs/1907.10529)."""

    lengths: str = field(
        "geometric",
        'words per span: "geometric", by stop_probability, or "uniform", from 1 to max_words',
        choices=("geometric", "uniform"),
    )
    stop_probability: float = field(
        0.2, "probability that a word is the last of its span", bounds="(0, 1]"
    )
    max_words: int = field(10, "maximum words per span", bounds=POSITIVE)

    def units(
        self,
        is_continuation: jax.Array,
        is_candidate: jax.Array,
        order_bits: jax.Array,
        more_bits: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        starts = word_starts(is_continuation, is_candidate)
        uniform = self.lengths == "uniform"
        begin = self._uniform_spans if uniform else self._geometric_spans
        span_starts = starts & begin(starts, is_candidate, more_bits)
        return starts, jnp.take_along_axis(order_bits, last_start(span_starts), axis=1)

    def _geometric_spans(
        self, starts: jax.Array, is_candidate: jax.Array, bits: jax.Array
    ) -> jax.Array:
        """[rows, length] bool: the words that begin a span."""
        # Lengths are geometric if every word begins a new span with the same probability.
        begins = _after_break(is_candidate) | (bits < self.stop_probability * _UINT32_RANGE)
        word = jnp.cumsum(starts, axis=1)
        first_word = jax.lax.cummax(jnp.where(starts & begins, word, 0), axis=1)
        return (word - first_word) % self.max_words == 0

    def _uniform_spans(
        self, starts: jax.Array, is_candidate: jax.Array, bits: jax.Array
    ) -> jax.Array:
        """[rows, length] bool: the words that begin a span."""
        # After k of at most n words a span ends with probability 1 / (n + 1 - k). Each word maps
        # its place in the span of the word before, 0 to n - 1, to its own; the maps are composed.
        places = jnp.arange(self.max_words)
        ends = bits[..., None] < _UINT32_RANGE / (self.max_words - places)
        ends |= places == self.max_words - 1
        moved = jnp.where(ends | _after_break(is_candidate)[..., None], 0, places + 1)
        moved = jnp.where(starts[..., None], moved, places)
        moved = jax.lax.associative_scan(
            lambda first, second: jnp.take_along_axis(second, first, axis=-1), moved, axis=1
        )
        return moved[..., 0] == 0


@dataclass(frozen=True, eq=False)
class BoundMasking:
    """A `Masking` for one vocabulary and a fixed number of slots per row.

    Attributes:
      masking: how positions are chosen.
      slots: predictions that a row has room for, at least as many as its examples need together.
      mask_id: id of [MASK].
      is_special: [vocab_size] bool, tokens never predicted and never random replacements.
      is_continuation: [vocab_size] bool, pieces that continue a word, if the batch does not say
        which do.
      first_step, steps: the first step and the number of steps of the run or phase.
    """

    masking: Masking
    slots: int
    mask_id: int
    is_special: np.ndarray
    is_continuation: np.ndarray
    first_step: int = 0
    steps: int = 1


class Choices(NamedTuple):
    """What to predict, and what is seen there.

    Attributes:
      is_candidate: [rows, length] bool, tokens that may be predicted.
      chosen: [rows, length] bool, those that are.
      seen_ids: [rows, length] int32, what a chosen token becomes.
    """

    is_candidate: jax.Array
    chosen: jax.Array
    seen_ids: jax.Array


def mask_tokens(
    batch: dict[str, jax.Array],
    masking: BoundMasking,
    key: jax.Array,
    step: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Chooses the positions to predict and masks them; see `choose_tokens` and `hide_tokens`."""
    _, chosen, seen_ids = choose_tokens(batch, masking, key, step)
    return hide_tokens(batch, chosen, seen_ids, masking.slots)


def choose_tokens(
    batch: dict[str, jax.Array],
    masking: BoundMasking,
    key: jax.Array,
    step: jax.Array | None = None,
) -> Choices:
    """Chooses the positions to predict.

    Of the chosen tokens `mask_share` become [MASK], `random_share` a random ordinary token, and the
    rest stay (80, 10 and 10 % in BERT), drawn independently for each token. The budget of an
    example of length n is round(masked_lm_prob * n) predictions, at least one and at most
    `max_predictions_per_seq`. Units are taken in random order up to the first that does not fit;
    the rest of the budget goes to units of one token, so a long word is skipped, never split. Token
    masking always uses the whole budget.

    Args:
      batch: `input_ids`, `segment_ids`, `position_ids` [rows, length] int32 and `example_ids`
        [rows, examples, 2] int32, (epoch, example); perhaps `word_rates` [rows, length] fp32, to
        draw units by weight.
      masking: how to mask.
      key: a typed threefry key made from the seed alone.
      step: int32, steps done; None for the share of tokens at the start.
    """
    input_ids, segment_ids = batch["input_ids"], batch["segment_ids"]
    is_candidate = (segment_ids > 0) & ~jnp.asarray(masking.is_special)[input_ids]
    order_bits, action_bits, token_bits, more_bits = _bits_by_position(batch, key)

    if "continues" in batch:
        continues = batch["continues"] > 0
    else:
        continues = jnp.asarray(masking.is_continuation)[input_ids]
    unit_start, order_bits = masking.masking.units(continues, is_candidate, order_bits, more_bits)
    if "word_rates" in batch:
        order_bits = _by_weight(order_bits, batch["word_rates"])
    progress = None if step is None else (step - masking.first_step) / masking.steps
    budgets = masking.masking.num_to_predict(segment_ids.shape[1], progress)
    chosen = _choose_units(jnp.asarray(budgets), segment_ids, is_candidate, unit_start, order_bits)

    ordinary_ids = jnp.asarray(np.flatnonzero(~masking.is_special), jnp.int32)
    random_ids = ordinary_ids[token_bits % len(ordinary_ids)]
    masked = masking.masking.mask_share
    replaced = masked + masking.masking.random_share
    seen_ids = jnp.where(action_bits < replaced * _UINT32_RANGE, random_ids, input_ids)
    seen_ids = jnp.where(action_bits < masked * _UINT32_RANGE, masking.mask_id, seen_ids)
    return Choices(is_candidate, chosen, seen_ids)


def _by_weight(order_bits: jax.Array, weights: jax.Array) -> jax.Array:
    """uint32: an order in which the next unit is each of those left by its share of their weights.

    Exponential times whose rates are the weights have it (Efraimidis and Spirakis 2006). With equal
    weights it is that of `order_bits`.
    """
    uniform = (order_bits >> 8).astype(jnp.float32) * 2.0**-24
    times = -jnp.log1p(-uniform) / weights
    return jax.lax.bitcast_convert_type(times, jnp.uint32)  # keeps the order of positive numbers


def hide_tokens(
    batch: dict[str, jax.Array], chosen: jax.Array, seen_ids: jax.Array, slots: int
) -> dict[str, jax.Array]:
    """Hides the chosen tokens and lists them.

    Args:
      batch: `input_ids` [rows, length] int32, and other arrays.
      chosen, seen_ids: see `Choices`.
      slots: predictions that a row has room for.

    Returns:
      The batch with `input_ids` masked and, in order of position, `masked_lm_positions`,
      `masked_lm_ids` [rows, slots] int32 and `masked_lm_weights` [rows, slots] fp32, 0 in unused
      slots.
    """
    input_ids = batch["input_ids"]
    # A stable sort by "not chosen" lists the chosen positions first, in order.
    positions = jnp.argsort(~chosen, axis=1, stable=True)[:, :slots].astype(jnp.int32)
    weights = jnp.take_along_axis(chosen, positions, axis=1)
    return batch | {
        "input_ids": jnp.where(chosen, seen_ids, input_ids),
        "masked_lm_positions": jnp.where(weights, positions, 0),
        "masked_lm_ids": jnp.where(weights, jnp.take_along_axis(input_ids, positions, axis=1), 0),
        "masked_lm_weights": weights.astype(jnp.float32),
    }


def _bits_by_position(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Four uint32 arrays [rows, length], keyed by (epoch, example, position)."""
    bits = jax.vmap(jax.vmap(lambda k: jax.random.bits(k, (4,))))(position_keys(batch, key))
    return jnp.moveaxis(bits, -1, 0)


def example_keys(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """[rows, examples] keys, by (epoch, example), of a typed threefry key."""
    epochs, examples = batch["example_ids"][..., 0], batch["example_ids"][..., 1]
    return _fold(_fold(jnp.broadcast_to(key, epochs.shape), epochs), examples)


def position_keys(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """[rows, length] keys, by (epoch, example, position), of a typed threefry key."""
    return _fold(of_example(example_keys(batch, key), batch), batch["position_ids"])


def of_example(values: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """[rows, examples] -> [rows, length]: the value of each position's example."""
    owner = jnp.maximum(batch["segment_ids"] - 1, 0)
    return jnp.take_along_axis(values, owner, axis=1)


_fold = jax.vmap(jax.vmap(jax.random.fold_in))


def word_starts(is_continuation: jax.Array, is_candidate: jax.Array) -> jax.Array:
    """[rows, length] bool: where a word begins; a continuation after a non-candidate begins one."""
    return is_candidate & ~(is_continuation & ~_after_break(is_candidate))


def _after_break(is_candidate: jax.Array) -> jax.Array:
    """[rows, length] bool: the position before is not a candidate."""
    return ~jnp.pad(is_candidate, ((0, 0), (1, 0)))[:, :-1]


def _choose_units(
    budgets: jax.Array,
    segment_ids: jax.Array,
    is_candidate: jax.Array,
    unit_start: jax.Array,
    order_bits: jax.Array,
) -> jax.Array:
    """[rows, length] bool: the positions of the units that are taken.

    Args:
      budgets: [length + 1] int32, predictions for an example of each length.
      segment_ids: [rows, length] int32.
      is_candidate, unit_start, order_bits: see `Masking.units`.
    """
    rows, length = segment_ids.shape
    index = jnp.broadcast_to(jnp.arange(length), (rows, length))
    ends = jnp.where(unit_start | ~is_candidate, index, length)
    next_end = jax.lax.cummin(ends, axis=1, reverse=True)
    next_end = jnp.pad(next_end[:, 1:], ((0, 0), (0, 1)), constant_values=length)
    size = jnp.where(unit_start, next_end - index, 0)

    example_length = jnp.sum(segment_ids[:, :, None] == segment_ids[:, None, :], axis=2)
    budget = budgets[example_length]

    # Sort by example, then by order; units of a span have equal order and stay in place. Positions
    # that begin no unit come last.
    owner = jnp.where(unit_start, segment_ids, length + 1)
    owner, _, index, size, budget = jax.lax.sort(
        (owner, order_bits, index, size, budget), dimension=1, num_keys=3
    )
    first = jnp.pad(owner[:, :-1], ((0, 0), (1, 0)), constant_values=-1) != owner

    def cumsum_in_example(values: jax.Array) -> jax.Array:
        total = jnp.cumsum(values, axis=1)
        return total - jax.lax.cummax(jnp.where(first, total - values, 0), axis=1)

    is_unit = size > 0
    taken = is_unit & (cumsum_in_example(size) <= budget)
    used = cumsum_in_example(jnp.where(taken, size, 0))
    filler = is_unit & ~taken & (size == 1)
    taken |= filler & (used + cumsum_in_example(filler.astype(size.dtype)) <= budget)

    _, taken = jax.lax.sort((index, taken), dimension=1, num_keys=1)
    return is_candidate & jnp.take_along_axis(taken, last_start(unit_start), axis=1)


def last_start(starts: jax.Array) -> jax.Array:
    """[rows, length] bool -> int32: the nearest start at or before each position."""
    return jax.lax.cummax(jnp.where(starts, jnp.arange(starts.shape[1]), 0), axis=1)

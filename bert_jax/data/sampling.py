"""Sampling: the plan of an epoch, a pure function of the data, the options, a seed and the epoch.

A plan says which spans of the token store form which example and which examples share a row. It
holds no tokens, so pairs, short sequences and packing are drawn anew in every epoch.

Randomness comes from splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", 2014), one stream per document, in integer arithmetic only, so a plan is the same bit
for bit in all versions of NumPy and Numba.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from bert_jax.data.split import Size
from bert_jax.errors import UserError
from bert_jax.fields import FRACTION, NOT_NEGATIVE, POSITIVE, build, field

PAIRS = ("nsp", "sop", "none")
_NAME = re.compile(r"[\w.-]+")
SHORTEST_ROW = 8  # [CLS] A [SEP] B [SEP], with a token to predict and one to predict it from

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_32_BITS = np.uint64(0xFFFFFFFF)
_U1, _U11, _U27, _U30, _U31, _U32 = (np.uint64(n) for n in (1, 11, 27, 30, 31, 32))

_MOST_RANDOM, _FEWEST_USED = 0.8, 0.6  # shares beyond which a user is warned

# Purposes of random streams.
_EXAMPLES, _EXAMPLE_ORDER, _ROW_ORDER, _SHARD, _SHARD_ORDER, _MIXING = range(6)


@dataclass(frozen=True)
class MixedStore:
    """A source of a mixture."""

    store: str = field("", "directory of a token store", resume=True)
    weight: float = field(1.0, "factor of its share of the tokens", bounds=POSITIVE)
    name: str = field("", "its name in metrics; empty: the last part of store")


@dataclass(frozen=True)
class Sampling:
    """What a batch holds."""

    store: str = field(
        "",
        "directory written by `bert-jax prepare`, or one of pre-masked TFRecords, which need "
        "packing off and ignore pairs, short_seq_prob and masking",
        resume=True,
    )
    mixture: tuple[Mapping[str, Any], ...] = field(
        (),
        "token stores to mix instead of one store, each a group with its store and, if wanted, "
        'weight (1.0) and name (the last part of store): ({"store": "stores/web", "weight": 0.7}, '
        '{"store": "stores/books", "weight": 0.3})',
    )
    temperature: float = field(
        0.0,
        "exponent of the sources' sizes: a source of a mixture has weight * tokens ** temperature "
        "as its share of the tokens, relative to the others; 0: the weights alone, 1: as large as "
        "it is",
        bounds="[0, 1]",
    )
    max_passes: float = field(
        0.0,
        "how often a source of a mixture is passed at most, earlier phases included; from then on "
        "the others have its share; 0: no limit",
        bounds=NOT_NEGATIVE,
    )
    batch_size: int = field(256, "rows of the global batch", bounds=POSITIVE)
    start_batch_size: int = field(
        0,
        "rows of the first batch of a run or phase whose batches grow; if it is 0, or not below "
        "batch_size, all have batch_size",
        bounds=NOT_NEGATIVE,
    )
    growth_steps: int = field(
        0,
        "steps in which batches grow from start_batch_size to batch_size, in a line",
        bounds=NOT_NEGATIVE,
    )
    growth_rows: int = field(
        0,
        "rows by which they grow at a time, each of which compiles the step once; 0: a sixteenth "
        "of batch_size",
        bounds=NOT_NEGATIVE,
    )
    max_seq_length: int = field(
        128, "tokens per row, including [CLS], [SEP] and padding", bounds=POSITIVE
    )
    pairs: str = field(
        "nsp",
        'what an example holds: "nsp", two segments for next sentence prediction; "sop", two for '
        'sentence order prediction; "none", full sentences for masked LM only',
        choices=PAIRS,
    )
    short_seq_prob: float = field(
        0.1, "share of examples drawn shorter than the row", bounds=FRACTION
    )
    packing: bool = field(True, "put several examples into a row; otherwise each has its own row")
    max_examples_per_row: int = field(4, "maximum examples per row, with packing", bounds=POSITIVE)

    @property
    def examples_per_row(self) -> int:
        """Maximum number of examples per row."""
        return self.max_examples_per_row if self.packing else 1

    @property
    def rows_of_growth(self) -> int:
        """Rows by which batches grow at a time."""
        return self.growth_rows or max(self.batch_size // 16, 1)

    @property
    def sources(self) -> tuple[MixedStore, ...]:
        """The sources of the mixture with their names; () if there is none."""
        return tuple(self._source(each) for each in self.mixture)

    @property
    def stores(self) -> tuple[str, ...]:
        """The directories of all its data."""
        return tuple(each.store for each in self.sources) or (self.store,)

    @property
    def mixture_summary(self) -> str:
        """What the mixture is, as far as the configuration tells; empty if there is none."""
        if not self.mixture:
            return ""
        if self.temperature:
            weights = ", ".join(f"{each.name} {each.weight:g}" for each in self.sources)
            return f"weights {weights}, times tokens ** {self.temperature:g}"
        total = sum(each.weight for each in self.sources)
        return ", ".join(f"{each.name} {each.weight / total:.1%}" for each in self.sources)

    def _source(self, given: Mapping[str, Any], path: str = "config.data.mixture") -> MixedStore:
        source = build(MixedStore, given, path)
        return replace(source, name=source.name or source.store.rstrip("/").rpartition("/")[2])

    def check(self, path: str) -> None:
        """Raises UserError if a row is too short for an example, or the mixture is none."""
        names = set()
        for index, given in enumerate(self.mixture):
            place = f"{path}.mixture[{index}]"
            source = self._source(given, place)
            if not source.store:
                raise UserError(f"{place}.store is empty: name the directory of a token store")
            if not _NAME.fullmatch(source.name):
                raise UserError(
                    f"{place}.name={source.name!r}: a name has letters, digits, '.', '_' and '-' "
                    "only; give it one"
                )
            if source.name in names:
                raise UserError(
                    f"{place}.name={source.name!r}: another source has this name; set a name"
                )
            names.add(source.name)
        if self.mixture and self.store:
            raise UserError(
                f"{path}.store={self.store!r} does not go with {path}.mixture: set one of them to "
                "'' or ()"
            )
        if not self.mixture and (self.temperature or self.max_passes):
            name = "temperature" if self.temperature else "max_passes"
            raise UserError(f"{path}.{name}: is for a {path}.mixture, and there is none")
        if self.max_seq_length < SHORTEST_ROW:
            raise UserError(
                f"{path}.max_seq_length={self.max_seq_length} is too short: at least {SHORTEST_ROW}"
            )


@dataclass(frozen=True, eq=False)
class Plan:
    """The examples and rows of one epoch: N examples in R rows.

    Spans are offsets into `Split.tokens`. The sentences of a document are contiguous, so a segment
    of several sentences is one span. Row r holds the examples
    `row_examples[row_offsets[r] : row_offsets[r + 1]]`.

    Attributes:
      a_start: int64 [N], first token of segment A.
      a_length: int32 [N], tokens of segment A, at least 1.
      b_start: int64 [N], first token of segment B.
      b_length: int32 [N], tokens of segment B; 0 if there is none (pairs='none').
      next_sentence_label: int8 [N]. NSP: 0 = B follows A, 1 = B is random. SOP: 0 = in order,
        1 = swapped. -1 with pairs='none'.
      row_offsets: int64 [R + 1].
      row_examples: int32 [N].
    """

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    next_sentence_label: np.ndarray
    row_offsets: np.ndarray
    row_examples: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.a_start)

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    def examples(self, rows: np.ndarray) -> np.ndarray:
        """The examples in some rows."""
        bounds = zip(self.row_offsets[rows], self.row_offsets[rows + 1])
        return np.concatenate([self.row_examples[first:stop] for first, stop in bounds])


class Usage(NamedTuple):
    """What an epoch uses of the documents.

    Attributes:
      tokens: share of the tokens that are used, random second segments not counted.
      label_1: share of the pairs with label 1, random or swapped; None without pairs.
    """

    tokens: float
    label_1: float | None

    def warning(self) -> str:
        """What is wrong with it and what to do; empty if nothing."""
        if self.label_1 is not None and self.label_1 > _MOST_RANDOM:
            return (
                f"{self.label_1:.0%} of the next-sentence pairs are random, since few documents "
                "have several sentences that fit a row: there is little to learn from pairs. Put "
                "line breaks between sentences, or pretrain with --config.data.pairs=none"
            )
        if self.tokens < _FEWEST_USED:
            return (
                f"an epoch uses only {self.tokens:.0%} of the tokens, since many sentences are "
                "longer than a row. Pretrain with longer rows or with --config.data.pairs=none, "
                "which uses all tokens; or put line breaks between sentences and prepare again"
            )
        return ""


def usage(plan: Plan, sampling: Sampling, num_tokens: int) -> Usage:
    """What a plan uses of `num_tokens` tokens."""
    own = plan.next_sentence_label != 1 if sampling.pairs == "nsp" else slice(None)
    used = int(plan.a_length.sum()) + int(plan.b_length[own].sum())
    label_1 = None if sampling.pairs == "none" else float((plan.next_sentence_label == 1).mean())
    return Usage(used / num_tokens, label_1)


def plan_epoch(
    sentences: np.ndarray, documents: np.ndarray, sampling: Sampling, *, seed: int, epoch: int
) -> Plan:
    """Draws the examples of an epoch and lays them out in rows of `max_seq_length` tokens.

    An example is `[CLS] A [SEP] B [SEP]`, or `[CLS] A [SEP]` with pairs='none'; neither segment is
    ever empty. The sentences of a document are gathered in order until they reach a target length:
    a full row or, with probability `short_seq_prob`, a uniform length from 2 tokens up (drawn per
    example; Google's code draws it once per document, too rarely in a corpus of few long
    documents).

    - 'nsp', next sentence prediction (Devlin et al. 2018, `create_pretraining_data`): the gathered
      sentences are split at random. With probability 1/2 the second part is B (label 0); otherwise
      B is a run of sentences from another document and the second part is used again in the next
      example (label 1). A single sentence cannot be split and always gets a random B, so more than
      half of the labels are 1: half plus half the share of single-sentence examples.
    - 'sop', sentence order prediction (Lan et al. 2019): both parts are kept and swapped with
      probability 1/2 (label 1). At least two sentences are gathered, however long; a single one
      left at the end of its document is dropped.
    - 'none': as many whole sentences as fit (FULL-SENTENCES within a document, Liu et al. 2019). A
      sentence longer than a row is cut into consecutive examples: every token is used exactly once.

    A pair that is too long loses tokens from its longer segment, each from the front or the back at
    random, until it fits.

    With `packing`, each example, in random order, goes into the fullest row that has room for it
    (best fit) and fewer than `max_examples_per_row` examples. Rows are shuffled.

    Args:
      sentences: int64 [num_sentences + 1], token offset of each sentence. Empty ones are ignored.
      documents: int64 [num_documents + 1], sentence offset of each document.
      sampling: how examples and rows are made.
      seed: any integer.
      epoch: from 0.

    Raises:
      UserError: `pairs` is unknown, `max_seq_length` leaves no room for text, or the documents
        give no examples: no sentences, a single document for NSP, only single sentences for SOP.
    """
    pairs, max_seq_length = sampling.pairs, sampling.max_seq_length
    short_seq_prob = sampling.short_seq_prob
    if pairs not in PAIRS:
        raise UserError(f"pairs must be one of {', '.join(PAIRS)}, not {pairs!r}")
    num_special = 2 if pairs == "none" else 3
    room = max_seq_length - num_special
    if room < 2:
        raise UserError(
            f"max_seq_length must be at least {num_special + 2} with pairs={pairs!r}, "
            f"not {max_seq_length}"
        )
    sentences, documents = _without_empty(np.asarray(sentences), np.asarray(documents))
    num_sentences, num_documents = len(sentences) - 1, len(documents) - 1
    if num_sentences == 0:
        raise UserError(
            "there are no sentences to sample from: add documents. A store of one document that "
            "has nothing held out is to be prepared again"
        )
    if pairs == "nsp" and num_documents == 1:
        raise UserError(
            "pairs='nsp' takes random segments from other documents, but there is only one: "
            "add documents, or set --config.data.pairs to sop or none"
        )

    # Every example starts a new sentence or is another full row of a long one. Pages of the arrays
    # that are never written take no memory.
    bound = num_sentences + int(sentences[-1] - sentences[0]) // room
    a_start, b_start = np.empty(bound, np.int64), np.zeros(bound, np.int64)
    a_length, b_length = np.empty(bound, np.int32), np.zeros(bound, np.int32)
    label = np.full(bound, -1, np.int8)
    spans = (a_start, a_length, b_start, b_length, label)
    rng = _stream(seed, epoch, _EXAMPLES)
    if pairs == "none":
        n = _fill_singles(rng, sentences, documents, room, short_seq_prob, a_start, a_length)
    else:
        sop = pairs == "sop"
        n = _fill_pairs(rng, sentences, documents, room, short_seq_prob, sop, spans)
    if n == 0:
        raise UserError(
            "pairs='sop' needs documents of at least two sentences, but there is none: "
            "set --config.data.pairs to nsp or none"
        )

    row_examples = _permutation(_stream(seed, epoch, _EXAMPLE_ORDER), n)
    row_offsets = np.arange(n + 1)
    if sampling.packing:
        lengths = a_length[:n] + b_length[:n] + np.int32(num_special)
        row, counts = _best_fit(
            row_examples, lengths, max_seq_length, sampling.max_examples_per_row
        )
        row_order = _permutation(_stream(seed, epoch, _ROW_ORDER), len(counts))
        row_offsets = np.append(0, np.cumsum(counts[row_order]))
        row_examples = _group_by_row(row_examples, row, counts, row_order, row_offsets)
    return Plan(
        a_start[:n],
        a_length[:n],
        b_start[:n],
        b_length[:n],
        label[:n],
        row_offsets,
        row_examples,
    )


def has_examples(size: Size, pairs: str) -> bool:
    """Whether a plan of documents of this size has examples."""
    if pairs == "none":
        return size.tokens > 0
    if pairs == "nsp":
        return size.documents > 1
    return size.documents > (size.single_sentence_documents or 0)


def shard_seed(seed: int, shard: int) -> int:
    """The seed of the plans of a shard; of the first one, that of a store that has no others."""
    return int(_stream(seed, shard, _SHARD)[0]) if shard else seed


def shard_order(num_shards: int, *, seed: int, round: int) -> np.ndarray:
    """The order in which shards are visited in a round: int32 [num_shards], a permutation."""
    return _permutation(_stream(seed, round, _SHARD_ORDER), num_shards)


def mixing_offset(stop: int, *, seed: int, block: int) -> int:
    """A random number below `stop` for a block of a mixture."""
    return int(_below(_stream(seed, block, _MIXING), stop))


def _without_empty(sentences: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops empty sentences and documents that have no others."""
    if _strictly_increasing(sentences) and _strictly_increasing(documents):
        return sentences, documents
    kept = np.flatnonzero(np.diff(sentences))
    return np.append(sentences[kept], sentences[-1]), np.unique(np.searchsorted(kept, documents))


@njit(nogil=True, cache=True)
def _strictly_increasing(offsets):
    i = 1
    while i < len(offsets) and offsets[i - 1] < offsets[i]:
        i += 1
    return i == len(offsets)


# A random stream is a uint64 [1] array that holds the state of a splitmix64 generator. Numba turns
# mixed signed and unsigned operands into floats, hence the uint64 constants.


def _stream(seed: int, epoch: int, purpose: int) -> np.ndarray:
    state = np.array([seed % 2**64], np.uint64)
    for value in (epoch, purpose):
        state[0] = _fold(state[0], value)
    return state


@njit(nogil=True, cache=True)
def _mix(x):
    x = (x ^ (x >> _U30)) * _MIX_1
    x = (x ^ (x >> _U27)) * _MIX_2
    return x ^ (x >> _U31)


@njit(nogil=True, cache=True)
def _fold(state, value):
    """The initial state of stream number `value` under `state`."""
    return _mix(_mix(state) + _GAMMA * np.uint64(value + 1))


@njit(nogil=True, cache=True)
def _bits(rng):
    """64 random bits."""
    rng[0] += _GAMMA
    return _mix(rng[0])


@njit(nogil=True, cache=True)
def _coin(rng):
    return _bits(rng) & _U1 == _U1


@njit(nogil=True, cache=True)
def _below(rng, n):
    """A uniform integer in [0, n), n < 2**32: the high word of the product of 64 bits and n."""
    bits, n = _bits(rng), np.uint64(n)
    return np.int64(((bits >> _U32) * n + ((bits & _LOW_32_BITS) * n >> _U32)) >> _U32)


@njit(nogil=True, cache=True)
def _heads(rng, n):
    """A binomial draw: heads in n tosses of a fair coin."""
    heads = 0
    while n > 0:
        bits = _bits(rng) >> np.uint64(max(0, 64 - n))
        while bits != 0:
            bits &= bits - _U1
            heads += 1
        n -= 64
    return heads


@njit(nogil=True, cache=True)
def _permutation(rng, n):
    order = np.arange(n).astype(np.int32)
    for i in range(n - 1, 0, -1):
        j = _below(rng, i + 1)
        order[i], order[j] = order[j], order[i]
    return order


@njit(nogil=True, cache=True)
def _target_length(rng, room, short_seq_prob):
    if (_bits(rng) >> _U11) * 2.0**-53 < short_seq_prob:
        return 2 + _below(rng, room - 1)
    return room


@njit(nogil=True, cache=True)
def _run_end(sentences, first, last, length):
    """The end of the shortest run of sentences from `first` that has `length` tokens, or `last`."""
    end = first + 1
    while end < last and sentences[end] - sentences[first] < length:
        end += 1
    return end


@njit(nogil=True, cache=True)
def _fill_singles(rng, sentences, documents, room, short_seq_prob, a_start, a_length):
    """Writes the examples of pairs='none' and returns their number."""
    n = 0
    key = rng[0]
    for document in range(len(documents) - 1):
        rng[0] = _fold(key, document)
        sentence, last = documents[document], documents[document + 1]
        start = sentences[sentence]
        while sentence < last:
            target = _target_length(rng, room, short_seq_prob)
            stop = start
            while (
                sentence < last
                and stop - start < target
                and sentences[sentence + 1] - start <= room
            ):
                sentence += 1
                stop = sentences[sentence]
            if stop == start:
                stop += room
            a_start[n], a_length[n] = start, stop - start
            n += 1
            start = stop
    return n


@njit(nogil=True, cache=True)
def _fill_pairs(rng, sentences, documents, room, short_seq_prob, sop, spans):
    """Writes the examples of pairs='nsp' or 'sop' and returns their number."""
    a_start, a_length, b_start, b_length, label = spans
    n = 0
    key = rng[0]
    num_documents = len(documents) - 1
    for document in range(num_documents):
        rng[0] = _fold(key, document)
        first, last = documents[document], documents[document + 1]
        while first < last:
            target = _target_length(rng, room, short_seq_prob)
            end = _run_end(sentences, first, last, target)
            if sop and end == first + 1:
                end += 1
                if end > last:
                    break
            split = first + 1 + (_below(rng, end - first - 1) if end > first + 1 else 0)
            a, a_stop = sentences[first], sentences[split]
            b, b_stop = a_stop, sentences[end]
            if sop:
                label[n] = _coin(rng)
                if label[n] == 1:
                    a, a_stop, b, b_stop = b, b_stop, a, a_stop
            else:
                label[n] = split == end or _coin(rng)
                if label[n] == 1:
                    other = _below(rng, num_documents - 1)
                    other += other >= document
                    other_first, other_last = documents[other], documents[other + 1]
                    b_first = other_first + _below(rng, other_last - other_first)
                    b_end = _run_end(sentences, b_first, other_last, target - (a_stop - a))
                    b, b_stop = sentences[b_first], sentences[b_end]
                    end = split

            # The result of cutting the longer segment token by token, B first.
            b_kept = min(b_stop - b, max(room // 2, room - (a_stop - a)))
            a_kept = min(a_stop - a, room - b_kept)
            a_start[n], a_length[n] = a + _heads(rng, a_stop - a - a_kept), a_kept
            b_start[n], b_length[n] = b + _heads(rng, b_stop - b - b_kept), b_kept
            n += 1
            first = end
    return n


@njit(nogil=True, cache=True)
def _best_fit(order, lengths, max_seq_length, max_examples_per_row):
    """Packs examples in `order`: the row of order[i], int32 [N]; examples per row, int32 [R].

    Open rows are kept in one linked list per number of free tokens, so finding the fullest row that
    fits looks at no more than `max_seq_length` lists.
    """
    n = len(order)
    row = np.empty(n, np.int32)
    counts = np.zeros(n, np.int32)
    next_row = np.empty(n, np.int32)
    head = np.full(max_seq_length + 1, -1, np.int32)
    num_rows = 0
    for i in range(n):
        length = lengths[order[i]]
        free = length
        while free <= max_seq_length and head[free] < 0:
            free += 1
        if free <= max_seq_length:
            r = head[free]
            head[free] = next_row[r]
        else:
            r, free = num_rows, max_seq_length
            num_rows += 1
        row[i] = r
        counts[r] += 1
        free -= length
        if counts[r] < max_examples_per_row:
            next_row[r] = head[free]
            head[free] = r
    return row, counts[:num_rows].copy()


@njit(nogil=True, cache=True)
def _group_by_row(order, row, counts, row_order, row_offsets):
    """The examples of row row_order[0], then those of row_order[1], and so on: int32 [N]."""
    cursor = np.empty(len(counts), np.int64)
    for position, r in enumerate(row_order):
        cursor[r] = row_offsets[position]
    grouped = np.empty_like(order)
    for i in range(len(order)):
        grouped[cursor[row[i]]] = order[i]
        cursor[row[i]] += 1
    return grouped

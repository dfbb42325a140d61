"""Mixtures: several token stores as one, each with a share of the tokens."""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_jax.data.batches import Batch, Batches, BatchStream, HostRows
from bert_jax.data.mixing import Mixing
from bert_jax.data.rows import Part, Piece, StoreRows, planner
from bert_jax.data.sampling import Sampling
from bert_jax.data.store import TokenStore
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError


@dataclass(frozen=True)
class Mixture:
    """Open token stores, together a `bert_jax.data.stores.Store`.

    Attributes:
      stores: the sources by name, all with one vocabulary.
      passed: how often each was passed before, by name; batches go on from there.
    """

    stores: Mapping[str, TokenStore]
    passed: Mapping[str, float] = field(default_factory=dict)

    is_masked = False

    def __post_init__(self) -> None:
        """Raises UserError if the stores do not fit together."""
        (first, store), *others = self.stores.items()
        for name, other in others:
            if other.tokenizer.vocab_hash != store.tokenizer.vocab_hash:
                raise UserError(
                    f"config.data.mixture: {name} has another vocabulary than {first}: prepare it "
                    f"with `bert-jax prepare --vocab={store.path}`"
                )

    def after(self, passed: Mapping[str, float]) -> "Mixture":
        """The same sources, passed already so many times."""
        return dataclasses.replace(self, passed=passed)

    @property
    def path(self) -> str:
        return ", ".join(str(store.path) for store in self.stores.values())

    @property
    def tokenizer(self) -> Tokenizer:
        return next(iter(self.stores.values())).tokenizer

    @property
    def fingerprint(self) -> str:
        """Identifies the data of all sources, whatever their names and weights."""
        joined = ",".join(store.fingerprint for store in self.stores.values())
        return hashlib.sha256(joined.encode()).hexdigest()

    @property
    def summary(self) -> str:
        return "; ".join(f"{name}: {store.summary}" for name, store in self.stores.items())

    @property
    def token_counts(self) -> np.ndarray:
        return np.sum([store.token_counts for store in self.stores.values()], axis=0)

    def check(self, sampling: Sampling, max_predictions_per_seq: int, path: str) -> None:
        """As `TokenStore.check`, of each source."""
        for store in self.stores.values():
            store.check(sampling, max_predictions_per_seq, path)

    def training_batches(
        self, sampling: Sampling, *, seed: int, host_rows: HostRows, first_row: int = 0
    ) -> BatchStream:
        """Rows of all sources, mixed."""
        rows = MixedRows(self, sampling, seed=seed)
        return Batches(rows, sampling, self.tokenizer, first_row=first_row, host_rows=host_rows)

    def heldout_batches(
        self, sampling: Sampling, *, num_batches: int, host_rows: np.ndarray
    ) -> Iterable[Batch]:
        """Those of the sources, one after another; each has `num_batches`."""
        found = [
            store.heldout_batches(sampling, num_batches=num_batches, host_rows=host_rows)
            for store in self.stores.values()
        ]
        return _Chain(found)


class _Chain(Iterable[Batch]):
    """Batches that may be iterated again."""

    def __init__(self, parts: Sequence[Iterable[Batch]]):
        self._parts = parts

    def __iter__(self) -> Iterator[Batch]:
        for part in self._parts:
            yield from part


class MixedRows:
    """The rows of a mixture, a `bert_jax.data.rows.Rows`.

    A source has weight x tokens ** temperature as its share of the tokens, relative to the others.
    Its share of the rows is that, divided by the tokens in its rows.
    Once it has been passed `max_passes` times, the others share its part.

    Attributes:
      rows_per_epoch: rows in which all sources together are passed once.
      usage: None; see `parts`.
      says_words: whether the stores say which tokens continue a word.
      parts: the sources.
    """

    usage = None

    def __init__(self, mixture: Mixture, sampling: Sampling, *, seed: int):
        """Draws a plan of each source.

        Args:
          mixture: the sources.
          sampling: what a row holds, and the weights.
          seed: random seed.

        Raises:
          UserError: a source has no examples, or some say which tokens continue a word and others
            do not; the message names the source. Or all have been passed as often as is allowed.
        """
        threads, names = planner(len(mixture.stores)), [*mixture.stores]

        def rows_of(name: str) -> StoreRows:
            shards = mixture.stores[name].shards["train"]
            try:
                return StoreRows(shards, sampling, seed=seed, threads=threads)
            except UserError as error:
                raise UserError(f"config.data.mixture: {name}: {error}") from error

        with planner(len(names)) as waiting:  # for `threads`
            self._sources = [*waiting.map(rows_of, names)]
        self.says_words = self._sources[0].says_words
        for name, source in zip(names, self._sources):
            if source.says_words != self.says_words:
                raise UserError(
                    f"config.data.mixture: of {name} and {names[0]} only one was made with "
                    "`bert-jax prepare --segmenter`"
                )
        tokens = np.array([store.token_counts.sum() for store in mixture.stores.values()])
        given = {source.name: source.weight for source in sampling.sources}
        weights = np.array([given[name] for name in names])
        of_tokens = weights * (tokens / tokens.max()) ** sampling.temperature
        of_tokens /= of_tokens.sum()
        of_rows = of_tokens / [source.tokens_per_row for source in self._sources]
        passes = np.array([source.rows_per_epoch for source in self._sources])
        self._begin = np.rint([mixture.passed.get(name, 0.0) for name in names] * passes).astype(
            int
        )
        self._max_passes = sampling.max_passes
        most = np.floor((sampling.max_passes or math.inf) * passes)
        self._mixing = Mixing(of_rows.tolist(), seed=seed, limits=(most - self._begin).tolist())
        self._check_there(1)
        self.rows_per_epoch = int(passes.sum())
        self.parts = [
            Part(name, share, source.rows_per_epoch, source.usage, limit)
            for name, share, source, limit in zip(
                names, of_tokens.tolist(), self._sources, (most / passes).tolist()
            )
        ]

    def pieces(self, rows: np.ndarray) -> Iterator[Piece]:
        """See `Rows`."""
        self._check_there(int(rows.max(initial=-1)) + 1)
        sources, before = self._mixing.of(rows)
        order = np.argsort(sources, kind="stable")
        bounds = np.searchsorted(sources[order], np.arange(len(self._sources) + 1))
        present = np.flatnonzero(np.diff(bounds)).tolist()
        for number in present:  # their plans are drawn side by side
            first = order[bounds[number]]
            self._sources[number].look_ahead(int(before[first] + self._begin[number]))
        for number in present:
            where = order[bounds[number] : bounds[number + 1]]
            for piece in self._sources[number].pieces(before[where] + self._begin[number]):
                yield piece._replace(
                    key=piece.key * len(self._sources) + number, where=where[piece.where]
                )

    def passes(self, row: int) -> dict[str, float]:
        """How often each source was passed before a row of the stream, and earlier.

        Raises:
          UserError: all sources have been passed as often as is allowed before that row.
        """
        self._check_there(row)
        done = self._begin + self._mixing.rows_before(row)
        counts = zip(self.parts, done.tolist())
        return {part.name: count / part.rows_per_epoch for part, count in counts}

    def _check_there(self, num_rows: int) -> None:
        if num_rows > self._mixing.num_rows:
            raise UserError(
                f"config.data.max_passes={self._max_passes:g}: every source is passed that often "
                f"after {self._mixing.num_rows:,} of {num_rows:,} rows; train fewer steps, add "
                "sources or allow more passes, of a run that has begun in a branch of it"
            )

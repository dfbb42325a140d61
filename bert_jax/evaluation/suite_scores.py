"""Scores parameters on suites while they are trained."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bert_jax.data.masked_copies import Copy, Tokens, masked_copies, pack_copies, tokens_of
from bert_jax.data.packing import Batch, Example, fill_rows, pack
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.evaluation.suites import Results, Suite
from bert_jax.model.architecture import Numerics
from bert_jax.model.bert import gather_positions
from bert_jax.model.heads import MASKED_LM
from bert_jax.model.losses import log_probability
from bert_jax.model.model import Model
from bert_jax.model.parameters import Params
from bert_jax.parallel import hosts, rules
from bert_jax.parallel.mesh import row_devices
from bert_jax.train.program import loader

ROW_MULTIPLE = 128  # row lengths are multiples of this, as TPUs want them
_log = logging.getLogger(__name__)


def exact(numerics: Numerics) -> Numerics:
    """Numerics of the model that `SuiteScores` takes: fp32, and rows of any length."""
    attention = "auto" if numerics.attention == "splash" else numerics.attention
    return dataclasses.replace(numerics, compute_dtype="float32", attention=attention)


class SuiteScores:
    """Log-likelihoods of fixed sentences, or pseudo-log-likelihoods, on a mesh.

    All hosts compute together: each holds a share of the rows of every batch.
    """

    def __init__(
        self,
        suites: Mapping[str, Suite],
        tokenizer: Tokenizer,
        model: Model,
        numerics: Numerics,
        mesh: Mesh,
        *,
        longest_row: int,
        batch_tokens: int,
        method: str = "pll",
    ):
        """Makes the masked copies of all sentences; compiles at the first call.

        Args:
          suites: name -> suite.
          tokenizer: tokenizer of the model.
          model: model whose parameters are scored, with a masked_lm head.
          numerics: numerics of the model, from `exact`.
          mesh: devices to compute on.
          longest_row: number of positions of the model; longer sentences are cut.
          batch_tokens: tokens of a batch, roughly.
          method: "pll", "mntp" or "causal", see `TrainedBert.score`.
        """
        # Even if nothing is masked there is a copy for each token: all methods share a program.
        masks = {"from_before": method == "mntp", "causal": method == "causal"}
        self._suites, self._pad_id, self._mesh = suites, tokenizer.pad_id, mesh
        texts = [text for suite in suites.values() for text in suite.texts]
        whole = [tokens_of(tokenizer, text) for text in texts]
        kept = [Tokens(ids[: longest_row - 2], word[: longest_row - 2]) for ids, word in whole]
        if cut := sum(map(lambda before, after: len(before.ids) > len(after.ids), whole, kept)):
            _log.warning(f"{cut} of {len(texts)} sentences cut to {longest_row} tokens")
        copies = (masked_copies(tokenizer, tokens, **masks) for tokens in kept)
        self._copies = list(itertools.chain.from_iterable(copies))
        self._counts = np.array([len(tokens.ids) for tokens in kept])
        longest = max((len(copy.ids) for copy in self._copies), default=1)
        self._length = min(longest_row, -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)
        self._rows = pack([len(copy.ids) for copy in self._copies], [self._length])[self._length]
        devices = row_devices(mesh)
        self._batch_rows = -(-batch_tokens // (self._length * devices)) * devices
        load = loader(mesh, model.axes, numerics)

        def step(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
            if method == "causal":
                batch = {**batch, "causal": batch["segment_ids"] > 0}
            with jax.default_matmul_precision("float32"):
                merged = nnx.merge(model.graphdef, load(params))
                hidden = gather_positions(merged.encode(batch), batch["positions"])
                return log_probability(MASKED_LM.apply(merged, hidden), batch["targets"])

        self._step = jax.jit(step, out_shardings=rules.replicated(mesh))

    def baselines(self) -> dict[str, float]:
        """What a guess reaches on each suite as a whole."""
        return {
            f"{name}_{next(iter(found.metrics()))}": found.chance
            for name, found in self._results(np.zeros(len(self._counts)))
        }

    def __call__(self, params: Params) -> dict[str, float]:
        """Metrics of all suites: NAME_accuracy or NAME_auc, and NAME_accuracy/GROUP."""
        log_probs = np.zeros(len(self._copies))
        for chosen, batch in self._batches():
            for row, of_row in zip(chosen, np.asarray(self._step(params, batch))):
                log_probs[row] = of_row[: len(row)]
        text = np.repeat(np.arange(len(self._counts)), self._counts)
        totals = np.bincount(text, log_probs, len(self._counts))
        return {
            f"{name}_{key}": value
            for name, results in self._results(totals)
            for key, value in results.metrics().items()
        }

    def _results(self, totals: np.ndarray) -> Iterator[tuple[str, Results]]:
        start = 0
        for name, suite in self._suites.items():
            some = slice(start, start + len(suite.texts))
            yield name, suite.results(totals[some], self._counts[some])
            start = some.stop

    def _batches(self) -> Iterator[tuple[list[list[int]], Mapping[str, jax.Array]]]:
        """The copies in the rows of each batch, by index, and this host's share on its devices."""
        mine = hosts.local_rows(rules.batch_sharding(self._mesh), self._batch_rows)
        for first in range(0, len(self._rows), self._batch_rows):
            chosen = self._rows[first : first + self._batch_rows]
            held = [chosen[row] if row < len(chosen) else [] for row in mine.tolist()]
            yield chosen, rules.put_batch(self._filled(held), self._mesh)

    def _filled(self, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        order = [index for row in rows for index in row]
        copies: list[Copy] = [self._copies[index] for index in order]
        place = itertools.count()
        local = [[next(place) for _ in row] for row in rows]

        def fill(examples: Sequence[Example]) -> list[Batch]:
            sizes: dict[str, Any] = {"num_rows": len(rows), "row_length": self._length}
            return [fill_rows(examples, local, **sizes, pad_id=self._pad_id)]

        (batch,) = pack_copies(copies, fill)
        return batch.rows

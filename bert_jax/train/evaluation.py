"""Evaluation of parameters on the fixed held-out batches."""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.config import Config
from bert_jax.data.batches import HELDOUT_SEED
from bert_jax.objective.pretraining import PreTraining
from bert_jax.parallel import rules
from bert_jax.report.baselines import pretraining_baselines
from bert_jax.train.build import AnyStore, evaluation_batches, load_params, put_batch
from bert_jax.train.metrics import add_sums, means
from bert_jax.train.state import Params
from bert_jax.train.step import make_eval_step


class Evaluation:
    """Scores on held-out documents: always the same examples under the same masks."""

    def __init__(self, config: Config, store: AnyStore, objective: PreTraining, mesh: Mesh):
        """Draws the examples; compiles at the first call.

        Args:
          config: of the run.
          store: whose held-out documents to use.
          objective: of the training; the seed of its masks is replaced by a fixed one.
          mesh: where to compute.
        """
        objective = dataclasses.replace(objective, seed=HELDOUT_SEED)
        self._heads = objective.heads
        self._batches = evaluation_batches(config, store, mesh)
        self._token_counts = store.train.token_counts
        self._mesh = mesh
        everywhere = rules.replicated(mesh)
        self._prepare = jax.jit(objective.prepare, out_shardings=everywhere)
        self._step = jax.jit(
            make_eval_step(objective, load_params(config.model, mesh)), out_shardings=everywhere
        )

    def __call__(self, params: Params) -> dict[str, float]:
        """Means over all held-out examples; see `means`."""
        sums = [self._step(params, batch) for batch in self._device_batches()]
        return means(add_sums(jax.device_get(sums)), self._heads)

    def baselines(self) -> dict[str, float]:
        """See `pretraining_baselines`."""
        prepared = (jax.device_get(self._prepare(batch)) for batch in self._device_batches())
        return pretraining_baselines(prepared, np.asarray(self._token_counts))

    def _device_batches(self) -> Iterable[dict[str, jax.Array]]:
        return (put_batch(batch, self._mesh) for batch in self._batches)

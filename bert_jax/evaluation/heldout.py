"""Scores parameters on the fixed held-out batches of a store."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.batches import HELDOUT_SEED
from bert_jax.data.stores import Store, sources_of
from bert_jax.errors import UserError
from bert_jax.model.model import Model
from bert_jax.model.parameters import Params
from bert_jax.objective.protocol import BoundObjective
from bert_jax.parallel import hosts, rules
from bert_jax.parallel.mesh import row_devices
from bert_jax.parallel.rules import put_batch
from bert_jax.report.baselines import pretraining_baselines
from bert_jax.train.metrics import Sums, add_sums, means
from bert_jax.train.program import loader
from bert_jax.train.step import make_eval_step

# Batches that wait on the devices, beside the one that is scored. More would fill their memory, and
# the devices of a CPU, which share its threads, could wait for each other.
IN_FLIGHT = 2


def bound_objective(
    config: PretrainConfig, store: Store, model: Model, seed: int, first_step: int = 0
) -> BoundObjective:
    """The objective of a run or stage, bound to a model and the vocabulary of a store.

    Raises:
      UserError: the store is masked already, and the run chooses the masks itself.
    """
    if store.is_masked and config.adaptive:
        raise UserError(
            "config.masking='adaptive' chooses the tokens to predict, but those of "
            f"{store.path} are masked already: use token"
        )
    masking = None if store.is_masked else config.bound_masking(store.tokenizer, first_step)
    return config.objective.bind(model.graphdef, masking, seed)


class HeldOut:
    """Scores on held-out documents, always with the same examples and masks.

    Of a mixture there are the scores of each source, "NAME/METRIC", besides those of all examples
    together, which do not depend on the weights.

    A batch has as many rows as in training, rounded up to a multiple of `row_devices`.

    Attributes:
      tokens: number of tokens that the last call scored, those that were not masked included.
    """

    def __init__(self, config: PretrainConfig, store: Store, model: Model, mesh: Mesh):
        """Draws the examples; compiles at the first call.

        Args:
          config: configuration of the run or stage.
          store: store whose held-out documents to use.
          model: model whose parameters are scored.
          mesh: devices to compute on.
        """
        config = dataclasses.replace(
            config,
            masking=config.masking.for_heldout(),
            objective=config.objective.for_heldout(),
        )
        objective = bound_objective(config, store, model, HELDOUT_SEED)
        rows = -(-config.data.batch_size // row_devices(mesh)) * row_devices(mesh)
        sampling = dataclasses.replace(
            config.data, batch_size=rows, start_batch_size=0, growth_steps=0
        )
        self._sources = sources_of(store)
        self._batches = {
            name: source.heldout_batches(
                sampling,
                num_batches=config.eval_batches,
                host_rows=hosts.local_rows(rules.batch_sharding(mesh), rows),
            )
            for name, source in self._sources.items()
        }
        self.tokens = 0
        self._objective = objective
        self._token_counts = store.token_counts
        self._mesh = mesh
        everywhere = rules.replicated(mesh)
        self._prepare = jax.jit(objective.prepare, out_shardings=everywhere)
        step = make_eval_step(objective, loader(mesh, model.axes, config.numerics))
        self._step = jax.jit(step, out_shardings=everywhere)

    def __call__(self, params: Params) -> dict[str, float]:
        """Means over all held-out examples; see `means`."""
        sums = {
            name: add_sums(self._sums(params, batches)) for name, batches in self._device_batches()
        }
        total = add_sums(sums.values())
        self.tokens = round(total["tokens"])

        def scores(of: Sums) -> dict[str, float]:
            return means(of, self._objective.heads, self._objective.factors)

        if len(sums) == 1:
            return scores(total)
        of_sources = {name: scores(each) for name, each in sums.items()}
        return scores(total) | _by_source(of_sources)

    def _sums(
        self, params: Params, batches: Iterable[Mapping[str, jax.Array]]
    ) -> Iterator[dict[str, Any]]:
        """The sums of each batch, on the host."""
        waiting: deque[Any] = deque()
        for batch in batches:
            waiting.append(self._step(params, batch))
            if len(waiting) > IN_FLIGHT:
                yield jax.device_get(waiting.popleft())
        yield from jax.device_get([*waiting])

    def baselines(self) -> dict[str, float]:
        """See `pretraining_baselines`; those of heads that the objective has."""
        objective = self._objective

        def words(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            weights = objective.weights(jax.tree.map(jnp.asarray, dict(batch)))
            heads = [head for head in objective.word_heads if head in weights]
            return {head: np.asarray(weights[head]) for head in heads}

        prepared = {
            name: (jax.device_get(self._prepare(batch)) for batch in batches)
            for name, batches in self._device_batches()
        }

        def baselines(
            batches: Iterable[Mapping[str, np.ndarray]], counts: np.ndarray
        ) -> dict[str, float]:
            found = pretraining_baselines(batches, np.asarray(counts), words)
            return {
                name: x for name, x in found.items() if name.rpartition("_")[0] in objective.heads
            }

        if len(prepared) == 1:
            (batches,) = prepared.values()
            return baselines(batches, self._token_counts)
        kept = {name: [*batches] for name, batches in prepared.items()}
        together = baselines(itertools.chain(*kept.values()), self._token_counts)
        of_sources = {
            name: baselines(batches, self._sources[name].token_counts)
            for name, batches in kept.items()
        }
        return together | _by_source(of_sources)

    def _device_batches(self) -> Iterator[tuple[str, Iterator[Mapping[str, jax.Array]]]]:
        """The batches of each source."""
        for name, batches in self._batches.items():
            yield name, (put_batch(batch, self._mesh) for batch in batches)


def _by_source(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{"web/mlm_loss": 2.0} for {"web": {"mlm_loss": 2.0}}."""
    return {
        f"{source}/{name}": value
        for source, values in found.items()
        for name, value in values.items()
    }

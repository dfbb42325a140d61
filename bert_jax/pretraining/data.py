"""The data of the stages of a run: their stores, and how often each source was passed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.mixture import Mixture
from bert_jax.data.stores import Store, open_data, sources_of
from bert_jax.errors import UserError
from bert_jax.train.workdirs import (
    FIRST_ROW,
    PASSED,
)


def configured_stores(config: PretrainConfig) -> tuple[Store, ...]:
    """Opens the data of each stage of a run; those of several stages once.

    Raises:
      UserError: as `configured_store`, or the stages have different vocabularies.
    """
    opened: dict[Any, Store] = {}
    stores: list[Store] = []
    for stage in config.stages():
        data = stage.config.data
        key = data.store, tuple((source.name, source.store) for source in data.sources)
        with stage.errors():
            if key not in opened:
                opened[key] = configured_store(stage.config)
            stores.append(opened[key])
            if stores[-1].tokenizer.vocab_hash != stores[0].tokenizer.vocab_hash:
                raise UserError(
                    f"config.{stage.name}.data: {stores[-1].path} has another vocabulary than "
                    f"{stores[0].path}, which an earlier phase reads"
                )
    return tuple(stores)


def configured_store(config: PretrainConfig) -> Store:
    """Opens the store of a stage.

    Raises:
      UserError: no store is named, it cannot be opened, or its vocabulary is not the model's.
    """
    store = open_data(config.data)
    size = len(store.tokenizer.vocab)
    if config.model.vocab_size != size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size}, but {store.path} has a vocabulary "
            f"of {size}: set --config.model.vocab_size={size} or prepare another store"
        )
    dropped, mask_id = config.model.token_dropout_id, store.tokenizer.mask_id
    if dropped not in (None, mask_id):
        raise UserError(
            f"config.model.token_dropout_id={dropped}, but the id of [MASK] in {store.path} is "
            f"{mask_id}: set --config.model.token_dropout_id={mask_id}"
        )
    return store


def going_on(store: Store, passed: Mapping[str, float]) -> Store:
    """The data of a stage; a mixture goes on where its sources were passed to."""
    return store.after(passed) if isinstance(store, Mixture) else store


def passed_before(
    config: PretrainConfig, stores: Sequence[Store], step: int, started: Mapping[str, Any]
) -> dict[str, float]:
    """How often each source of mixtures was passed before a step of a run, by name.

    Args:
      config: configuration of the run.
      stores: its data, by stage.
      step: step of the run.
      started: what its `data.json` says that it started from.
    """
    passed: dict[str, float] = dict(started.get(PASSED, {}))
    first_row = started.get(FIRST_ROW, 0)
    for stage, store in zip(config.stages(), stores):
        if stage.first_step < step and isinstance(store, Mixture):
            stream = store.after(passed).training_batches(
                stage.config.data, seed=config.seed, host_rows=np.arange, first_row=first_row
            )
            passed |= stream.passes(min(step, stage.last_step) - stage.first_step)
        first_row = 0
    return passed


def identity(store: Store, stage: str = "") -> dict[str, str]:
    """Identifies the data of a stage: the fingerprint of its store, or of each source by name.

    Args:
      store: its data.
      stage: name of the stage; empty for the first one.
    """
    prefix = f"{stage}." if stage else ""
    return {
        f"{prefix}store_fingerprint{f'.{name}' if name else ''}": source.fingerprint
        for name, source in sources_of(store).items()
    }


def identities(config: PretrainConfig, stores: Sequence[Store]) -> dict[str, str]:
    """Identifies the data of a run; of later stages, those that differ from the first one's."""
    found = identity(stores[0])
    for stage, store in zip(config.stages(), stores):
        if store is not stores[0]:
            found |= identity(store, stage.name)
    return found

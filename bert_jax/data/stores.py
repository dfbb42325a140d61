"""The interface that training needs, for data in any form."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
from etils import epath

from bert_jax.data.batches import Batch, BatchStream, HostRows
from bert_jax.data.mixture import Mixture
from bert_jax.data.sampling import Sampling
from bert_jax.data.store import TokenStore, damaged_files, open_token_store
from bert_jax.data.tfrecords import damaged_record_files, is_premasked, open_premasked
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError


class Store(Protocol):
    """Documents or examples for training and evaluation."""

    @property
    def path(self) -> epath.PathLike:
        """Its directory."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its vocabulary."""

    @property
    def fingerprint(self) -> str:
        """Identifies its data."""

    @property
    def summary(self) -> str:
        """A description, printed when a run starts."""

    @property
    def is_masked(self) -> bool:
        """Whether its batches are masked already."""

    @property
    def token_counts(self) -> np.ndarray:
        """int64 [vocab_size], how often each token occurs in the training data."""

    def check(self, sampling: Sampling, max_predictions_per_seq: int, path: str) -> None:
        """Raises UserError, with `path` before field names, if it cannot give such batches."""

    def training_batches(
        self, sampling: Sampling, *, seed: int, host_rows: HostRows, first_row: int = 0
    ) -> BatchStream:
        """The batches of one host.

        Args:
          sampling: what a batch holds.
          seed: random seed of their order and of all sampling.
          host_rows: which rows of the global batch this host gathers.
          first_row: row of the stream with which the first batch begins.

        Raises:
          UserError: it cannot give such batches.
        """

    def heldout_batches(
        self, sampling: Sampling, *, num_batches: int, host_rows: np.ndarray
    ) -> Iterable[Batch]:
        """The fixed batches of an evaluation, which may be iterated again; see `one_epoch`."""


def open_store(path: epath.PathLike) -> Store:
    """Opens a token store, or a folder of pre-masked TFRecords in its place.

    Raises:
      UserError: as `open_token_store` and `open_premasked`.
    """
    return open_premasked(path) if is_premasked(path) else open_token_store(path)


def open_data(sampling: Sampling) -> Store:
    """Opens the store or the mixture that is sampled from.

    Raises:
      UserError: none is named, or as `open_store`; sources of a mixture have different
        vocabularies, or one is masked already.
    """
    if not sampling.mixture:
        if not sampling.store:
            raise UserError(
                "config.data.store is empty: name the directory that `bert-jax prepare` wrote"
            )
        return open_store(sampling.store)
    stores = {}
    for source in sampling.sources:
        store = open_store(source.store)
        if not isinstance(store, TokenStore):
            raise UserError(
                f"config.data.mixture: {source.name} is masked already; mix token stores only"
            )
        stores[source.name] = store
    return Mixture(stores)


def sources_of(store: Store) -> Mapping[str, Store]:
    """The sources of a mixture by name; of any other store itself, with the name ""."""
    return store.stores if isinstance(store, Mixture) else {"": store}


def verify(path: epath.PathLike) -> Iterator[tuple[str, str]]:
    """Reads all data of a store of any form: the name of each file and what is wrong, or "".

    Raises:
      UserError: there is no store, or it is damaged otherwise.
    """
    yield from (damaged_record_files if is_premasked(path) else damaged_files)(path)

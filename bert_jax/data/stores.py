"""What training needs of data, whatever form they have."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from etils import epath

from bert_jax.data.batches import Batch, BatchStream
from bert_jax.data.sampling import Sampling
from bert_jax.data.store import open_token_store
from bert_jax.data.tfrecords import is_premasked, open_premasked
from bert_jax.data.wordpiece import WordPiece


class Store(Protocol):
    """Documents or examples to train and to evaluate on."""

    @property
    def path(self) -> epath.PathLike:
        """Its directory."""

    @property
    def wordpiece(self) -> WordPiece:
        """Its vocabulary."""

    @property
    def fingerprint(self) -> str:
        """What tells its data from others."""

    @property
    def summary(self) -> str:
        """What to tell of it when a run starts."""

    @property
    def is_masked(self) -> bool:
        """Whether its batches are complete, and must not be masked again."""

    @property
    def token_counts(self) -> np.ndarray:
        """int64 [vocab_size], how often the training data have each token."""

    def check(self, sampling: Sampling, max_predictions_per_seq: int, path: str) -> None:
        """Raises UserError, with `path` before names of fields, if it has no such batches."""

    def training_batches(
        self, sampling: Sampling, *, seed: int, host_rows: np.ndarray
    ) -> BatchStream:
        """The batches of one host.

        Args:
          sampling: what a batch holds.
          seed: of their order, and of all that is drawn.
          host_rows: which rows of the global batch this host gathers.

        Raises:
          UserError: there are no such batches in it.
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

"""Batches of a task's examples, packed into rows: step -> arrays, a pure function."""

from collections.abc import Callable, Sequence

import numpy as np

from bert_jax.data.packing import TOKENS_PER_SLOT, Batch, Example, fill_rows, pack
from bert_jax.model.heads import Head
from bert_jax.tasks.features import Features

ROW_MULTIPLE = 32  # row lengths are multiples of this


class ExampleBatches:
    """The batches of one host: `batch_size` examples each, in as few rows as hold them.

    An example is a sequence, or a group of sequences, such as the choices of a question, which
    share a row.

    Short examples share a row, so little is computed on padding; since attention stays within an
    example, results do not depend on the packing. The number of rows is rounded up to a multiple of
    an eighth of the examples, so that few shapes are compiled.

    With a seed, every epoch is shuffled anew and examples that do not fill a last batch are
    dropped; without, examples keep their order and none is dropped.

    Attributes:
      steps_per_epoch: batches per epoch.
    """

    def __init__(
        self,
        features: Features,
        head: Head,
        *,
        pad_id: int,
        batch_size: int,
        seed: int | None,
        packing: bool = True,
        row_multiple: int = 1,
        host_rows: Callable[[int], np.ndarray] = np.arange,
    ):
        """Reads only the lengths of examples.

        Args:
          features: the examples.
          head: output layer, which lays out their labels.
          pad_id: id of [PAD].
          batch_size: examples of the global batch, or groups.
          seed: random seed of the order of examples; None = their own order, once.
          packing: False gives each example, or group, its own row.
          row_multiple: the number of rows is a multiple of it.
          host_rows: number of rows of the global batch -> rows that this host gathers.
        """
        self._labels, self._head = features.labels, head
        self._examples = [*map(Example, features.input_ids, features.b_start)]
        self._units = features.units
        self._lengths = [self._length(unit) for unit in self._units]
        self._pad_id = pad_id
        self._batch_size = batch_size
        self._seed = seed
        self._packing = packing
        self._host_rows = host_rows
        self._row_length = -(-max(self._lengths) // ROW_MULTIPLE) * ROW_MULTIPLE
        if found := head.label_lengths(features.labels):
            # Examples share a row if their labels share one, too: both in units of the first.
            lengths, longest = found
            needed = np.ceil(lengths * (self._row_length / longest)).astype(np.int64)
            self._lengths = np.maximum(self._lengths, needed).tolist()
        self._row_multiple = row_multiple * -(-batch_size // (8 * row_multiple))
        count = len(self._units)
        self.steps_per_epoch = count // batch_size if seed is not None else -(-count // batch_size)

    def _length(self, unit: Sequence[int]) -> int:
        """Tokens that a unit takes in a row; in a group, each sequence needs a slot of the row."""
        lengths = [len(self._examples[index].ids) for index in unit]
        return lengths[0] if len(unit) == 1 else sum(max(n, TOKENS_PER_SLOT) for n in lengths)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This host's rows of batch `step`, as `bert_jax.objective.finetuning` takes them."""
        return self.packed(step).rows

    def packed(self, step: int) -> Batch:
        """The same, with the position of each example."""
        epoch, step = divmod(step, self.steps_per_epoch)
        order = np.arange(len(self._units))
        if self._seed is not None:
            order = np.random.default_rng((self._seed, epoch)).permutation(order)
        chosen = order[step * self._batch_size : (step + 1) * self._batch_size].tolist()
        rows = [self._units[unit] for unit in chosen]
        if self._packing:
            lengths = [self._lengths[unit] for unit in chosen]
            packed = pack(lengths, [self._row_length])[self._row_length]
            rows = [[i for index in row for i in self._units[chosen[index]]] for row in packed]
        num_rows = -(-len(rows) // self._row_multiple) * self._row_multiple
        rows += [[]] * (num_rows - len(rows))
        mine = [rows[row] for row in self._host_rows(num_rows)]
        batch = fill_rows(
            self._examples,
            mine,
            num_rows=len(mine),
            row_length=self._row_length,
            pad_id=self._pad_id,
        )
        labels = self._head.labels_in_rows(self._labels, batch)
        return batch._replace(rows=batch.rows | {"labels": labels})

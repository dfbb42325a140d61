"""Batches of a task's examples, packed into rows: step -> arrays, a pure function."""

from collections.abc import Callable, Sequence

import numpy as np

from bert_jax.tasks.features import Features

ROW_MULTIPLE = 32  # of tokens


class ExampleBatches:
    """The batches of one host: `batch_size` examples each, in as few rows as hold them.

    Short examples share a row, so little is computed on padding; since attention stays within an
    example, what a batch teaches does not depend on the rows. Their number is rounded up to a
    multiple of an eighth of the examples, so that few shapes are compiled.

    Every epoch has a random order of its own, and the rest that does not fill a batch is dropped;
    in order of the features nothing is dropped.

    Attributes:
      steps_per_epoch: batches of an epoch.
    """

    def __init__(
        self,
        features: Features,
        *,
        pad_id: int,
        batch_size: int,
        seed: int | None,
        packing: bool = True,
        row_multiple: int = 1,
        host_rows: Callable[[int], np.ndarray] = np.arange,
    ):
        """Looks at lengths only.

        Args:
          features: the examples.
          pad_id: id of [PAD].
          batch_size: examples of the global batch.
          seed: of the order of examples; None = their own order, once.
          packing: False gives each example a row.
          row_multiple: divides the number of rows.
          host_rows: number of rows of the global batch -> those that this host gathers.
        """
        self._features = features
        self._pad_id = pad_id
        self._batch_size = batch_size
        self._seed = seed
        self._host_rows = host_rows
        self._lengths = np.array([len(ids) for ids in features.input_ids])
        self._row_length = -(-int(self._lengths.max()) // ROW_MULTIPLE) * ROW_MULTIPLE
        shortest = int(self._lengths.min())
        self._examples_per_row = self._row_length // shortest if packing else 1
        eighth = -(-batch_size // 8)
        self._row_multiple = row_multiple * -(-eighth // row_multiple)
        count = len(features)
        self.steps_per_epoch = count // batch_size if seed is not None else -(-count // batch_size)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This host's rows of batch `step`, as `bert_jax.objective.finetuning` takes them.

        Beside that `example_ids` int32 [rows, examples] is the index of each example, -1 where
        there is none.
        """
        epoch, step = divmod(step, self.steps_per_epoch)
        order = np.arange(len(self._features))
        if self._seed is not None:
            order = np.random.default_rng((self._seed, epoch)).permutation(order)
        chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
        rows = self._pack(chosen)
        num_rows = -(-len(rows) // self._row_multiple) * self._row_multiple
        rows += [[]] * (num_rows - len(rows))
        return self._gather([rows[row] for row in self._host_rows(num_rows)])

    def _pack(self, examples: np.ndarray) -> list[list[int]]:
        """First fit, long examples first."""
        rows: list[list[int]] = []
        room: list[int] = []
        for example in examples[np.argsort(-self._lengths[examples], kind="stable")]:
            length = self._lengths[example]
            for row, free in enumerate(room):
                if free >= length and len(rows[row]) < self._examples_per_row:
                    break
            else:
                row = len(rows)
                rows.append([])
                room.append(self._row_length)
            rows[row].append(int(example))
            room[row] -= length
        return rows

    def _gather(self, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        features = self._features
        tokens, examples = (len(rows), self._row_length), (len(rows), self._examples_per_row)
        batch = {
            "input_ids": np.full(tokens, self._pad_id, np.int32),
            "token_type_ids": np.zeros(tokens, np.int32),
            "position_ids": np.zeros(tokens, np.int32),
            "segment_ids": np.zeros(tokens, np.int32),
            "cls_positions": np.zeros(examples, np.int32),
            "example_ids": np.full(examples, -1, np.int32),
        }
        of_tokens = isinstance(features.labels, list)
        if of_tokens:
            labels = np.full(tokens, -1, np.int32)
        else:
            empty = np.nan if features.labels.dtype == np.float32 else -1
            shape = (*examples, *features.labels.shape[1:])
            labels = np.full(shape, empty, features.labels.dtype)
        for i, row in enumerate(rows):
            start = 0
            for e, example in enumerate(row):
                ids = features.input_ids[example]
                where = slice(start, start + len(ids))
                batch["input_ids"][i, where] = ids
                batch["token_type_ids"][i, where] = np.arange(len(ids)) >= features.b_start[example]
                batch["position_ids"][i, where] = np.arange(len(ids))
                batch["segment_ids"][i, where] = e + 1
                batch["cls_positions"][i, e] = start
                batch["example_ids"][i, e] = example
                if of_tokens:
                    labels[i, where] = features.labels[example]
                elif labels.ndim == 3:  # positions
                    labels[i, e] = features.labels[example] + start
                else:
                    labels[i, e] = features.labels[example]
                start += len(ids)
        return batch | {"labels": labels}

"""The devices of this process, which share the rows of every batch."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from bert_jax.data.packing import Batch, Example
from bert_jax.inference.batching import make_batches
from bert_jax.model.parameters import Params
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh

T = TypeVar("T")
E = TypeVar("E", bound="HasIds")
Found = TypeVar("Found")

# Small batches keep activations in a CPU's caches; an accelerator needs larger ones.
TOKENS_PER_DEVICE = {"cpu": 1024}
TOKENS_PER_ACCELERATOR = 16_384
# Tokens packed and sorted together; more would not fill rows better.
TOKENS_PER_WINDOW = 65_536


class HasIds(Protocol):
    """What is packed into rows: something with token ids."""

    @property
    def ids(self) -> np.ndarray: ...


class Devices:
    """Brings texts to the devices in batches, and results back in order.

    Attributes:
      mesh: mesh of the devices.
      tokens_per_device: tokens that each device computes on at once.
    """

    def __init__(self, pad_id: int, longest_row: int):
        """Computes nothing yet.

        Args:
          pad_id: id of [PAD].
          longest_row: number of positions of the model.
        """
        self.mesh = make_mesh(devices=jax.local_devices())
        platform = self.mesh.devices.flat[0].platform
        self.tokens_per_device = TOKENS_PER_DEVICE.get(platform, TOKENS_PER_ACCELERATOR)
        self._pad_id, self._longest_row = pad_id, longest_row

    def put_params(self, params: Params) -> Params:
        """The parameters, replicated on every device."""
        return jax.device_put(params, rules.replicated(self.mesh))

    def put(self, batch: Batch, **more: np.ndarray) -> dict[str, jax.Array]:
        """The arrays of a batch and further ones, all with their rows split over the devices."""
        return jax.device_put(batch.rows | more, rules.batch_sharding(self.mesh))

    def batches(self, examples: Sequence[Example], *, packing: bool = True) -> list[Batch]:
        """Examples, none longer than the longest row, as batches of few shapes.

        Without `packing`, each has its own row.
        """
        return make_batches(
            examples,
            pad_id=self._pad_id,
            longest_row=self._longest_row,
            tokens_per_device=self.tokens_per_device,
            num_devices=self.mesh.size,
            packing=packing,
        )

    def run(
        self,
        examples: Iterable[Example],
        start: Callable[[Batch], Found],
        finish: Callable[[Batch, Any], Iterable[T]],
    ) -> Iterator[T]:
        """Results in the order of the examples; see `run_packed`."""
        return self.run_packed(examples, self.batches, start, finish)

    def run_packed(
        self,
        examples: Iterable[E],
        pack: Callable[[Sequence[E]], list[Batch]],
        start: Callable[[Batch], Found],
        finish: Callable[[Batch, Any], Iterable[T]],
    ) -> Iterator[T]:
        """Results in the order of the examples.

        A thread makes and packs a window of examples while the devices compute the previous one,
        and the results of a window are fetched while they compute the next one.

        Args:
          examples: one for each text.
          pack: makes the batches of a window of examples.
          start: sends a batch to the devices and returns its future arrays, without waiting.
          finish: turns a batch and its arrays, fetched to numpy, into a result for each text.
        """
        smallest = self.tokens_per_device * self.mesh.size
        windows = _ahead(
            (len(window), pack(window))
            for window in _windows(examples, max(TOKENS_PER_WINDOW, 4 * smallest))
        )
        running = ((size, [(b, start(b)) for b in batches]) for size, batches in windows)
        for (size, calls), _ in itertools.pairwise(itertools.chain(running, [(0, [])])):
            results: dict[int, T] = {}
            for batch, found in calls:
                of_texts = finish(batch, jax.device_get(found))
                results |= zip(batch.examples.tolist(), of_texts, strict=True)
            yield from (results[index] for index in range(size))


def _windows(examples: Iterable[E], tokens: int) -> Iterator[list[E]]:
    """Consecutive examples of at least `tokens` tokens together; the last may have fewer."""
    window: list[E] = []
    size = 0
    for example in examples:
        window.append(example)
        size += len(example.ids)
        if size >= tokens:
            yield window
            window, size = [], 0
    if window:
        yield window


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made by a thread while the previous one is in use."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item

"""Examples of tasks that are cut into windows together."""

import itertools
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
EXAMPLES_PER_CHUNK = 256


def chunks(items: Iterator[T]) -> Iterator[list[T]]:
    """Yields the items, some hundred at a time."""
    while chunk := list(itertools.islice(items, EXAMPLES_PER_CHUNK)):
        yield chunk

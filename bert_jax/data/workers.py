"""Processes that work on chunks of documents; the results are those of one process, in order."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from bert_jax.errors import UserError

T = TypeVar("T")
S = TypeVar("S", bound=Sized)

CHUNK_CHARACTERS = 1_000_000
_function: Callable[[list[str]], Any]  # of a worker


def in_chunks(documents: Iterable[S], characters: int = CHUNK_CHARACTERS) -> Iterator[list[S]]:
    """The documents in lists, each ending with the document that reaches so many characters."""
    chunk: list[S] = []
    size = 0
    for text in documents:
        chunk.append(text)
        size += len(text)
        if size >= characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def in_workers(
    function: Callable[[list[str]], T], chunks: Iterable[list[str]], workers: int
) -> Iterator[T]:
    """What `function` makes of each chunk, in order, at most three chunks per worker in flight.

    Args:
      function: can be pickled; each worker has its own copy.
      chunks: read as results are taken.
      workers: processes; 1 uses this one.

    Raises:
      UserError: a worker was killed.
    """
    if workers == 1:
        yield from map(function, chunks)
        return
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (function,)
    ) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_work, chunk))
                if len(pending) == 3 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, as happens when memory runs out; take fewer workers"
            ) from error


def _start(function: Callable[[list[str]], Any]) -> None:
    global _function
    _function = function
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker

    # A killed parent does not close the queue that the pool waits on.
    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _work(chunk: list[str]) -> Any:
    return _function(chunk)

"""Writes vectors to files as they are computed."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_jax.data.columnar import import_pyarrow
from bert_jax.errors import UserError
from bert_jax.inference.text_lines import Line
from bert_jax.storage import whole_file
from bert_jax.terminal import json_line, output_errors

SUFFIXES = (".jsonl", ".npy", ".parquet")
ROW_GROUP = 1024

# Takes a line, its vectors and, if there is one per token, the tokens.
Write = Callable[[Line, np.ndarray, Sequence[str] | None], object]


def check_output(path: str | None, pooling: str) -> None:
    """Raises UserError if the file `path` cannot hold vectors of this pooling."""
    if path is None:
        return
    suffix = Path(path).suffix
    if suffix not in SUFFIXES or "://" in path:
        raise UserError(f"--output={path}: must be a local file that ends in {', '.join(SUFFIXES)}")
    if suffix == ".npy" and pooling == "tokens":
        raise UserError(f"--output={path}: texts differ in tokens; use .jsonl or .parquet")
    if suffix == ".parquet":
        import_pyarrow()


@contextlib.contextmanager
def vector_file(path: str | None) -> Iterator[Write]:
    """A file that appears if the block succeeds; its suffix sets the format.

    - .jsonl, also for None, standard output: the fields of the line, and `vector`, [hidden] or
      [layers, hidden], or `tokens` and `vectors` with one of these for each token; 7 decimals.
    - .npy: one fp32 array of all vectors, [lines, hidden] or [lines, layers, hidden].
    - .parquet: `line`, its number, `text_a`, `text_b` or null, and fp32 lists as in .jsonl.
    """
    if path is None:
        with output_errors(), _jsonl(sys.stdout.buffer) as write:
            yield write
        return
    writer = {".jsonl": _jsonl, ".npy": _npy, ".parquet": _parquet}[Path(path).suffix]
    with whole_file(path) as unfinished, unfinished.open("wb") as file, writer(file) as write:
        yield write


@contextlib.contextmanager
def _jsonl(file: BinaryIO) -> Iterator[Write]:
    def write(line: Line, vectors: np.ndarray, tokens: Sequence[str] | None) -> None:
        values = vectors.astype(float).round(7).tolist()
        new = {"vector": values} if tokens is None else {"tokens": tokens, "vectors": values}
        file.write(json_line(line.merged(new)).encode() + b"\n")

    yield write
    file.flush()


@contextlib.contextmanager
def _npy(file: BinaryIO) -> Iterator[Write]:
    count = 0
    shape: tuple[int, ...] = ()

    def header() -> None:
        # The format leaves room for a first axis of any length, so this can be overwritten.
        description = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, description)

    def write(line: Line, vectors: np.ndarray, tokens: Sequence[str] | None) -> None:
        nonlocal count, shape
        if not count:
            shape = vectors.shape
            header()
        count += 1
        file.write(vectors.astype("<f4").tobytes())

    yield write
    file.seek(0)
    header()


@contextlib.contextmanager
def _parquet(file: BinaryIO) -> Iterator[Write]:
    pa, parquet = import_pyarrow()
    rows: list[tuple[Line, np.ndarray, Sequence[str] | None]] = []
    writer: Any = None

    def flush() -> None:
        nonlocal writer
        lines, vectors, tokens = zip(*rows)
        texts = [[line.text] if isinstance(line.text, str) else line.text for line in lines]
        columns = {
            "line": pa.array([line.number for line in lines], pa.int64()),
            "text_a": pa.array([text[0] for text in texts], pa.string()),
            "text_b": pa.array([(*text, None)[1] for text in texts], pa.string()),
        }
        if tokens[0] is None:
            columns["vector"] = _lists(pa, np.stack(vectors))
        else:
            offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
            columns["tokens"] = pa.array(tokens, pa.list_(pa.string()))
            values = _lists(pa, np.concatenate(vectors))
            columns["vectors"] = pa.ListArray.from_arrays(offsets, values)
        table = pa.table(columns)
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
        rows.clear()

    def write(line: Line, vectors: np.ndarray, tokens: Sequence[str] | None) -> None:
        rows.append((line, vectors, tokens))
        if len(rows) == ROW_GROUP:
            flush()

    try:
        yield write
        if rows:
            flush()
    finally:
        if writer:
            writer.close()


def _lists(pa: Any, array: np.ndarray) -> Any:
    """An array of lists of a fixed size, nested like the axes of `array` after the first."""
    values = pa.array(array.ravel())
    for size in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values

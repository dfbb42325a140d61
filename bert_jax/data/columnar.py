"""Reads Parquet and Arrow files with pyarrow, which is imported only when one is read or written.

Arrow files are of either form: the file format, also called Feather, and the stream format, which
the library `datasets` writes.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO

from etils import epath

from bert_jax.errors import UserError
from bert_jax.json_values import parse_json
from bert_jax.storage import read_json

SUFFIXES = (".parquet", ".arrow", ".feather")
BATCH_ROWS = 1024
_FILE_FORMAT = b"ARROW1"  # how an Arrow file begins that is no stream
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"


def columnar_rows(
    path: epath.Path,
    columns: Collection[str] = (),
    advance: Callable[[int], object] = lambda size: None,
) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet or Arrow file, in order, as Python's values by column.

    Classes of the library `datasets`, which are numbers in its files, become their names, and None
    for -1 (no class).

    Args:
      path: a file; one that does not end in .parquet is Arrow.
      columns: those to read, `outer/inner` or `outer.inner` if nested; all if the file has none of
        them.
      advance: called with about the bytes of the file read since the last call.

    Raises:
      UserError: no such file, of another format or damaged, or pyarrow is not installed.
    """
    pyarrow, _ = import_pyarrow()
    if not path.exists():
        raise UserError(f"{path}: no such file")
    batches = _parquet_batches if path.suffix == ".parquet" else _arrow_batches
    kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
    size, position, count = path.stat().length, 0, 0
    try:
        with path.open("rb") as file:
            for share, batch in batches(path, file, columns):
                advance(int(size * share) - position)
                position = int(size * share)
                features = _features(path, batch.schema.metadata or {})
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    for row in batch.slice(start, BATCH_ROWS).to_pylist():
                        count += 1
                        yield {name: _named(item, features.get(name)) for name, item in row.items()}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: not {kind}, or damaged after row {count} ({reason})") from error


def saved_dataset(folder: epath.Path) -> list[epath.Path]:
    """The Arrow files of a folder that `datasets` wrote by `save_to_disk`, in order.

    Of several splits, those of `train`. Nothing if the folder is none of `datasets`.

    Raises:
      UserError: there is no split `train`, or rows are in another order than in the files.
    """
    if (folder / _SAVED_SPLITS).exists():
        splits = read_json(folder / _SAVED_SPLITS, dict[str, list[str]]).get("splits", [])
        if "train" not in splits:
            raise UserError(f"{folder}: no split train; name one of {', '.join(splits)} in it")
        folder = folder / "train"
    if not (folder / _SAVED).exists():
        return []
    state = read_json(folder / _SAVED)
    files = [each.get("filename") for each in state.get("_data_files") or [] if each]
    if not files or not all(isinstance(file, str) for file in files):
        raise UserError(f"{folder / _SAVED}: names no files of data")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(f"{folder}: a selection of rows; save `dataset.flatten_indices()`")
    if missing := [file for file in files if not (folder / file).exists()]:
        raise UserError(f"{folder / missing[0]}: missing, but {_SAVED} names it")
    return [folder / file for file in files]


def import_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
      UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("Parquet and Arrow need pyarrow: pip install pyarrow") from error
    return pyarrow, parquet


def _parquet_batches(
    path: epath.Path, file: BinaryIO, columns: Collection[str]
) -> Iterator[tuple[float, Any]]:
    """The share of the rows that were read, and each batch of rows."""
    del path
    table = import_pyarrow()[1].ParquetFile(file)
    wanted = _wanted(table.schema_arrow.names, columns)
    count, total = 0, max(1, table.metadata.num_rows)
    for batch in table.iter_batches(BATCH_ROWS, columns=wanted):
        count += batch.num_rows
        yield count / total, batch.replace_schema_metadata(table.schema_arrow.metadata)


def _arrow_batches(
    path: epath.Path, file: BinaryIO, columns: Collection[str]
) -> Iterator[tuple[float, Any]]:
    """The share of the file that was read, and each batch of rows."""
    pyarrow, _ = import_pyarrow()
    size = file.seek(0, 2)
    file.seek(max(0, size - len(_END_OF_STREAM)))
    end = file.read()
    file.seek(0)
    is_stream = file.read(len(_FILE_FORMAT)) != _FILE_FORMAT
    file.seek(0)
    reader = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
    wanted = _wanted(reader.schema.names, columns)
    number = 0
    while is_stream or number < reader.num_record_batches:
        try:
            batch = reader.read_next_batch() if is_stream else reader.get_batch(number)
        except StopIteration:
            break
        number += 1
        share = file.tell() / size if is_stream else number / reader.num_record_batches
        yield share, batch.select(wanted) if wanted else batch
    if is_stream and end != _END_OF_STREAM:
        logging.getLogger(__name__).warning(f"{path}: has no end mark; it may be cut short")


def _wanted(names: Collection[str], columns: Collection[str]) -> list[str] | None:
    """Which of the columns of a file hold some of `columns`; None for all of them."""
    return [
        name
        for name in names
        if any(column == name or column.startswith((f"{name}/", f"{name}.")) for column in columns)
    ] or None


def _features(path: epath.Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What `datasets` says of each column; nothing for files that others wrote."""
    text = metadata.get(b"huggingface", b"{}").decode("utf-8", "replace")
    found = parse_json(text, f"{path}, metadata of datasets")
    for name in ("info", "features"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _named(value: Any, feature: Any) -> Any:
    """A value of a column whose classes `datasets` numbers, with their names."""
    if isinstance(feature, list):  # how `datasets` once wrote sequences
        feature = {"feature": feature[0] if feature else None}
    if not isinstance(feature, dict):
        return value
    if isinstance(value, list):
        return [_named(item, feature.get("feature")) for item in value]
    names = feature.get("names")
    if isinstance(value, int) and isinstance(names, list):
        return names[value] if 0 <= value < len(names) else None
    return value

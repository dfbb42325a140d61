"""Reads Parquet files with pyarrow, which is imported only when one is read or written."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from bert_jax.errors import UserError
from bert_jax.json_values import parse_json

BATCH_ROWS = 1024


def parquet_rows(path: epath.Path, columns: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, in order, as Python's values by column.

    Classes of the library `datasets`, which are numbers in its files, become their names, and None
    for -1 (no class).

    Args:
      path: a file.
      columns: those to read, `outer/inner` if nested; all if the file has none of them.

    Raises:
      UserError: no such file, not Parquet or damaged, or pyarrow is not installed.
    """
    pyarrow, parquet = import_pyarrow()
    if not path.exists():
        raise UserError(f"{path}: no such file")
    count = 0
    try:
        with path.open("rb") as file:
            table = parquet.ParquetFile(file)
            features = _features(path, table.schema_arrow.metadata or {})
            outer = {column.partition("/")[0] for column in columns}.union(columns)
            wanted = [name for name in table.schema_arrow.names if name in outer]
            for batch in table.iter_batches(BATCH_ROWS, columns=wanted or None):
                for row in batch.to_pylist():
                    count += 1
                    yield {name: _named(item, features.get(name)) for name, item in row.items()}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: not Parquet, or damaged after row {count} ({reason})") from error


def import_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
      UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow, parquet


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

"""Reads a model from any directory that holds one."""

from etils import epath

from bert_jax.interop.portable import Portable
from bert_jax.interop.workdir import read_workdir


def read(path: epath.PathLike, step: int | None = None) -> Portable:
    """The model in `path`."""
    return read_workdir(epath.Path(path), step)

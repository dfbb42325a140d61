"""Object storage such as gs://BUCKET/PATH beside local disks.

All paths are `etils.epath`'s. What object storage has not, and this package does without there:
files that can be memory-mapped or appended to, locks, and folders that are renamed as one.
"""

import os
from collections.abc import Iterator

from etils import epath

# etils would take TensorFlow's file system where TensorFlow is installed; gcsfs is the tested one.
os.environ.setdefault("EPATH_USE_TF", "false")


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in object storage."""
    return "://" in os.fspath(path)


def files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """All files in a folder, at any depth."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path

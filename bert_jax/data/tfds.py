"""Datasets of TensorFlow Datasets, read without TensorFlow."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from bert_jax.errors import UserError


class TfdsExamples(Protocol):
    """The examples of a split of TensorFlow Datasets, read one by one."""

    @property
    def dataset_info(self) -> Any:
        """The `DatasetInfo` of the dataset."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...


def dataset_and_split(name: str) -> tuple[str, str] | None:
    """('glue/sst2', 'test') for 'tfds:glue/sst2:test'; the split is `train` by default.

    None for any other name. The dataset may end in a version, ':1.0.0'.
    """
    match = re.fullmatch(r"tfds:([^:]+(?::\d+\.[\d*]+\.[\d*]+)?)(?::(.+))?", name)
    return match and (match[1], match[2] or "train")


def tfds_examples(name: str, split: str, data_dir: str | None) -> TfdsExamples:
    """The examples of a TFDS dataset in ArrayRecord format, read without TensorFlow.

    Raises:
      UserError: the dataset is missing, is in another format or has no such split.
    """
    import tensorflow_datasets as tfds  # takes half a second, and other sources do not need it

    try:
        return tfds.data_source(name, split=split, data_dir=data_dir)
    except Exception as error:  # TFDS passes on any error of the download or the builder
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"tfds:{name}:{split}: cannot be read from data_dir {data_dir}: {reason} "
            "Build it with `tfds build --file_format=array_record`"
        ) from error

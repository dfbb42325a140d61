"""Datasets of TensorFlow Datasets, read without TensorFlow."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from bert_jax.errors import UserError

# What `tfds build` needs, with the packages that it imports but does not install.
_INSTALL = "pip install tensorflow-datasets tensorflow mlcroissant importlib_resources"
_FOR_WIKIPEDIA = " apache-beam mwparserfromhell mwxml"


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
        # To build a dataset takes other libraries, and may take hours: not here.
        return tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    except Exception as error:  # TFDS passes on any error of the builder
        reason = str(error).strip().partition("\n")[0]
        command = f"tfds build {name} --file_format=array_record"
        if data_dir:
            command += f" --data_dir={data_dir}"
        is_wikipedia = name.partition("/")[0] == "wikipedia"
        install = _INSTALL + _FOR_WIKIPEDIA if is_wikipedia else _INSTALL
        advice = "; or take hf:wikimedia/wikipedia/20231101.en" if is_wikipedia else ""
        raise UserError(
            f"tfds:{name}:{split}: cannot be read from data_dir "
            f"{data_dir or '~/tensorflow_datasets'} ({reason}). Build it, best in an environment "
            f"of its own: `{install}`, then `{command}`{advice}"
        ) from error

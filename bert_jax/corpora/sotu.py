"""State of the Union addresses as a TensorFlow Datasets builder.

Building needs no TensorFlow when the format is ArrayRecord:

    from bert_jax.corpora.sotu import Sotu
    Sotu(data_dir=..., file_format="array_record").download_and_prepare()

and then `bert-jax prepare tfds:sotu --data-dir ...` reads it like any other TFDS dataset.
"""

import json
import lzma
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath


class Sotu(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # TFDS has no types
    """249 addresses in one split, `train`; features: id, year, president and text."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Addresses from 1790 to 2026."}  # noqa: RUF012, TFDS's own form

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "year": np.int32,
                    "president": tfds.features.Text(),
                    "text": tfds.features.Text(),
                }
            ),
            homepage="https://www.presidency.ucsb.edu/",
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[str, Any]]]:
        del dl_manager  # nothing to download: the text comes with the package
        return {"train": self._generate_examples(epath.resource_path("bert_jax") / "corpora")}

    def _generate_examples(self, directory: epath.Path) -> Iterator[tuple[str, Any]]:
        with lzma.open(directory / "sotu.jsonl.xz", "rt", encoding="utf-8") as lines:
            for example in map(json.loads, lines):
                yield example["id"], example

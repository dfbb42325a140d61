"""The tasks of GLUE (Wang et al. 2018, https://arxiv.org/abs/1804.07461).

They read TFDS, GLUE's own files, and those of the library `datasets`. Classes are in their order,
which is the same in TFDS and `datasets`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from etils import epath

from bert_jax.data.lines import suffixes
from bert_jax.tasks.classification.names import Names
from bert_jax.tasks.classification.task import ClassificationTask

_SENTENCE_1: Names = ("sentence1", "#1 String")
_SENTENCE_2: Names = ("sentence2", "#2 String")
_ENTAILED: tuple[Names, ...] = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask(ClassificationTask):
    """A task whose test examples are scored by GLUE's server.

    Attributes:
      submissions: test split -> name of its prediction file.
    """

    test_labelled: bool = False

    submissions: ClassVar[Mapping[str, str]]
    _has_numbers: ClassVar[bool] = True  # those of `datasets`

    def _format_of(self, source: str) -> str:
        is_tsv = suffixes(epath.Path(source))[0] == ".tsv"
        return "tsv" if is_tsv else ""  # GLUE's files are never quoted

    def submission_name(self, source: str) -> str | None:
        if source.startswith(("tfds:", "hf:")):
            return self.submissions.get(source.rpartition(":")[2])
        # test.tsv, or test-00000-of-00001.parquet
        return self.submissions.get(re.split("[-.]", epath.Path(source).name)[0])


@dataclass(frozen=True)
class Cola(GlueTask, name="glue/cola"):
    """Corpus of Linguistic Acceptability: whether a sentence is acceptable."""

    train: str = "tfds:glue/cola:train"
    dev: str = "tfds:glue/cola:validation"
    test: str = "tfds:glue/cola:test"
    text_a: Names = ("sentence", "4")  # its training and development files have no header
    label: Names = ("label", "2")
    labels: tuple[Names, ...] = (("unacceptable", "0"), ("acceptable", "1"))
    metric_names: tuple[str, ...] = ("matthews",)

    submissions: ClassVar[Mapping[str, str]] = {"test": "CoLA.tsv"}


@dataclass(frozen=True)
class Sst2(GlueTask, name="glue/sst2"):
    """Stanford Sentiment Treebank: whether a sentence of a film review is positive."""

    train: str = "tfds:glue/sst2:train"
    dev: str = "tfds:glue/sst2:validation"
    test: str = "tfds:glue/sst2:test"
    text_a: Names = "sentence"
    labels: tuple[Names, ...] = (("negative", "0"), ("positive", "1"))

    submissions: ClassVar[Mapping[str, str]] = {"test": "SST-2.tsv"}


@dataclass(frozen=True)
class Mrpc(GlueTask, name="glue/mrpc"):
    """Microsoft Research Paraphrase Corpus: whether two sentences mean the same."""

    train: str = "tfds:glue/mrpc:train"
    dev: str = "tfds:glue/mrpc:validation"
    test: str = "tfds:glue/mrpc:test"
    text_a: Names = _SENTENCE_1
    text_b: Names = _SENTENCE_2
    label: Names = ("label", "Quality")
    labels: tuple[Names, ...] = (("not_equivalent", "0"), ("equivalent", "1"))
    metric_names: tuple[str, ...] = ("accuracy", "f1")

    submissions: ClassVar[Mapping[str, str]] = {"test": "MRPC.tsv"}


@dataclass(frozen=True)
class Stsb(GlueTask, name="glue/stsb"):
    """Semantic Textual Similarity Benchmark: how similar two sentences are, from 0 to 5."""

    train: str = "tfds:glue/stsb:train"
    dev: str = "tfds:glue/stsb:validation"
    test: str = "tfds:glue/stsb:test"
    text_a: Names = _SENTENCE_1
    text_b: Names = _SENTENCE_2
    label: Names = ("label", "score")
    regression: bool = True

    submissions: ClassVar[Mapping[str, str]] = {"test": "STS-B.tsv"}


@dataclass(frozen=True)
class Qqp(GlueTask, name="glue/qqp"):
    """Quora Question Pairs: whether two questions mean the same."""

    train: str = "tfds:glue/qqp:train"
    dev: str = "tfds:glue/qqp:validation"
    test: str = "tfds:glue/qqp:test"
    text_a: Names = "question1"
    text_b: Names = "question2"
    label: Names = ("label", "is_duplicate")
    index: Names = ("idx", "id")
    labels: tuple[Names, ...] = (("not_duplicate", "0"), ("duplicate", "1"))
    metric_names: tuple[str, ...] = ("accuracy", "f1")
    skip_incomplete: bool = True  # a few lines of its files are cut short

    submissions: ClassVar[Mapping[str, str]] = {"test": "QQP.tsv"}


@dataclass(frozen=True)
class Mnli(GlueTask, name="glue/mnli"):
    """Multi-Genre Natural Language Inference: whether a sentence follows from another.

    Dev and test examples are of the genres seen in training; TFDS's splits of other genres are
    `validation_mismatched` and `test_mismatched`.
    """

    train: str = "tfds:glue/mnli:train"
    dev: str = "tfds:glue/mnli:validation_matched"
    test: str = "tfds:glue/mnli:test_matched"
    text_a: Names = ("premise", "sentence1")
    text_b: Names = ("hypothesis", "sentence2")
    label: Names = ("label", "gold_label")
    labels: tuple[Names, ...] = ("entailment", "neutral", "contradiction")

    submissions: ClassVar[Mapping[str, str]] = {
        "test_matched": "MNLI-m.tsv",
        "test_mismatched": "MNLI-mm.tsv",
    }


@dataclass(frozen=True)
class Ax(Mnli, name="glue/ax"):
    """Diagnostic examples for a model of glue/mnli, without training examples."""

    train: str = ""
    dev: str = ""
    test: str = "tfds:glue/ax:test"

    submissions: ClassVar[Mapping[str, str]] = {"test": "AX.tsv"}


@dataclass(frozen=True)
class Qnli(GlueTask, name="glue/qnli"):
    """Question-answering NLI: whether a sentence contains the answer to a question."""

    train: str = "tfds:glue/qnli:train"
    dev: str = "tfds:glue/qnli:validation"
    test: str = "tfds:glue/qnli:test"
    text_a: Names = "question"
    text_b: Names = "sentence"
    labels: tuple[Names, ...] = _ENTAILED

    submissions: ClassVar[Mapping[str, str]] = {"test": "QNLI.tsv"}


@dataclass(frozen=True)
class Rte(GlueTask, name="glue/rte"):
    """Recognizing Textual Entailment: whether a sentence follows from a text."""

    train: str = "tfds:glue/rte:train"
    dev: str = "tfds:glue/rte:validation"
    test: str = "tfds:glue/rte:test"
    text_a: Names = _SENTENCE_1
    text_b: Names = _SENTENCE_2
    labels: tuple[Names, ...] = _ENTAILED

    submissions: ClassVar[Mapping[str, str]] = {"test": "RTE.tsv"}


@dataclass(frozen=True)
class Wnli(GlueTask, name="glue/wnli"):
    """Winograd NLI: whether a sentence with a pronoun entails one with it replaced."""

    train: str = "tfds:glue/wnli:train"
    dev: str = "tfds:glue/wnli:validation"
    test: str = "tfds:glue/wnli:test"
    text_a: Names = _SENTENCE_1
    text_b: Names = _SENTENCE_2
    labels: tuple[Names, ...] = (("not_entailment", "0"), ("entailment", "1"))

    submissions: ClassVar[Mapping[str, str]] = {"test": "WNLI.tsv"}

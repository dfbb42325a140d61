"""Writes predicted tags as CoNLL files."""

from collections.abc import Sequence

from etils import epath

from bert_jax.storage import write_text
from bert_jax.tasks.tagging.decoding import Prediction
from bert_jax.tasks.tagging.example import Sentence


def write_conll(
    path: epath.PathLike, examples: Sequence[Sentence], predictions: Sequence[Prediction]
) -> None:
    """Writes word, tag if it is known, and predicted tag, separated by tabs.

    conlleval reads the file with `-d '\\t'`.
    """
    blocks = []
    for example, prediction in zip(examples, predictions, strict=True):
        known = [example.tags] if example.tags is not None else []
        rows = zip(example.words, *known, prediction.tags, strict=True)
        blocks.append("".join("\t".join(row) + "\n" for row in rows))
    write_text(path, "\n".join(blocks))

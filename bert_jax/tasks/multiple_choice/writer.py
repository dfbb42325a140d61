"""Writes the choices that a model takes."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from bert_jax.fields import Plain
from bert_jax.storage import write_text
from bert_jax.tasks.multiple_choice.example import Question


def choice_fields(example: Question, found: np.ndarray) -> Plain:
    """What a model says of a question, as values of a JSON object.

    `choice`, the number of the likeliest choice, its `text` and `probability`, and the
    `probabilities` of all in their order, with 6 decimals.

    Args:
      example: the question.
      found: probability of each choice.
    """
    rounded = [round(float(value), 6) for value in found]
    best = int(found.argmax())
    return {
        "choice": best,
        "text": example.choices[best],
        "probability": rounded[best],
        "probabilities": rounded,
    }


def write_tsv(path: epath.PathLike, examples: Sequence[Question], choices: np.ndarray) -> None:
    """Writes `index` and `prediction`, the number of a choice from 0, as TSV with a header."""
    rows = [f"{example.index}\t{choice}" for example, choice in zip(examples, choices.tolist())]
    write_text(path, "\n".join(["index\tprediction", *rows]) + "\n")

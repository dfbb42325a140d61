"""Writes predicted classes, their probabilities, and scores."""

from collections.abc import Mapping, Sequence

from etils import epath

from bert_jax.fields import Plain
from bert_jax.storage import write_text
from bert_jax.tasks.classification.decoding import Verdict
from bert_jax.tasks.classification.example import Example


def verdict_fields(found: Verdict, thresholds: Mapping[str, float]) -> Plain:
    """What a classifier says of a text, as values of a JSON object.

    For classes `label`, the predicted one, its `probability`, and the `probabilities` of all by
    name, best first; for a regression its `score`. All have 6 decimals.

    Args:
      found: verdict on the text.
      thresholds: the class that is predicted from a probability on, and else the likeliest of the
        others; empty to predict the likeliest class.
    """
    if isinstance(found, float):
        return {"score": round(found, 6)}
    reached = [name for name in thresholds if found[name] >= thresholds[name]]
    label = next(iter(reached or [name for name in found if name not in thresholds]))
    rounded = {name: round(probability, 6) for name, probability in found.items()}
    return {"label": label, "probability": rounded[label], "probabilities": rounded}


def write_tsv(path: epath.PathLike, examples: Sequence[Example], said: Sequence[str]) -> None:
    """Writes `index` and `prediction` as TSV with a header, the format of GLUE's server.

    Rows are sorted by index if all are numbers, because TFDS shuffles them.
    """
    rows = [(example.index, text) for example, text in zip(examples, said, strict=True)]
    if all(index.isdecimal() for index, _ in rows):
        rows.sort(key=lambda row: int(row[0]))
    lines = ["index\tprediction", *(f"{index}\t{text}" for index, text in rows)]
    write_text(path, "\n".join(lines) + "\n")

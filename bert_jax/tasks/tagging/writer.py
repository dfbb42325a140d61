"""Writes predicted tags, and the entities that they mark."""

from collections.abc import Iterable, Sequence

from etils import epath

from bert_jax.fields import Plain
from bert_jax.storage import write_text
from bert_jax.tasks.tagging.decoding import Prediction
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.plain_text import Entity, find_entities, join_words


def entity_fields(entities: Iterable[Entity]) -> list[Plain]:
    """Entities as values of a JSON object: their attributes, with 6 decimals of `score`."""
    return [entity._asdict() | {"score": round(entity.score, 6)} for entity in entities]


def tag_fields(example: Sentence, prediction: Prediction, scheme: str) -> Plain:
    """A tagged sentence as values of a JSON object.

    They are `text`, the words with a space between them; `words`; the `tags` of the words and their
    `probabilities`, with 6 decimals; and the `entities` that the tags mark in `text` by `scheme`.
    """
    text, words = join_words(example.words)
    return {
        "text": text,
        "words": list(example.words),
        "tags": prediction.tags,
        "probabilities": [round(float(each), 6) for each in prediction.probabilities],
        "entities": entity_fields(find_entities(text, words, prediction, scheme)),
    }


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

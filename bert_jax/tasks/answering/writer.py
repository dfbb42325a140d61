"""Writes answers in the files of BERT's run_squad.py."""

from collections.abc import Sequence

from etils import epath

from bert_jax.storage import write_json
from bert_jax.tasks.answering.decoding import Prediction
from bert_jax.tasks.answering.example import Question


def write_answers(
    directory: epath.PathLike,
    examples: Sequence[Question],
    predictions: Sequence[Prediction],
    *,
    unanswerable: bool,
) -> None:
    """Writes JSON files keyed by question id.

    They are predictions.json for the official scripts, nbest_predictions.json and, with
    `unanswerable`, null_odds.json for `evaluate-v2.0.py --na-prob-file`.
    """
    by_id = {example.id: p for example, p in zip(examples, predictions, strict=True)}
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "predictions.json", {id_: p.answer.text for id_, p in by_id.items()})
    write_json(
        directory / "nbest_predictions.json",
        {id_: [answer._asdict() for answer in p.n_best] for id_, p in by_id.items()},
    )
    if unanswerable:
        write_json(directory / "null_odds.json", {id_: p.null_odds for id_, p in by_id.items()})

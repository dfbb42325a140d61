"""Writes answers in the files of BERT's run_squad.py."""

from collections.abc import Sequence

from etils import epath

from bert_jax.fields import Plain
from bert_jax.storage import write_json
from bert_jax.tasks.answering.decoding import Prediction
from bert_jax.tasks.answering.example import Question


def answer_fields(prediction: Prediction) -> Plain:
    """An answer as values of a JSON object.

    They are `answer`, its text, "" for no answer; `start` and `end`, its characters in the context,
    None for no answer; and `probability`, its share among the candidates, with 6 decimals.
    """
    text, start, end = prediction.answer[:3]
    probability = round(prediction.answer.probability, 6)
    return {"answer": text, "start": start, "end": end, "probability": probability}


def write_answers(
    directory: epath.PathLike,
    examples: Sequence[Question],
    predictions: Sequence[Prediction],
    *,
    unanswerable: bool,
) -> None:
    """Writes JSON files keyed by question id.

    They are predictions.json for the official scripts, nbest_predictions.json and, with
    `unanswerable`, null_odds.json for `evaluate-v2.0.py --na-prob-file`. A path that ends in .json
    gets the content of predictions.json alone.
    """
    by_id = {example.id: p for example, p in zip(examples, predictions, strict=True)}
    directory = epath.Path(directory)
    answers = {id_: p.answer.text for id_, p in by_id.items()}
    if directory.suffix == ".json":
        write_json(directory, answers)
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "predictions.json", answers)
    write_json(
        directory / "nbest_predictions.json",
        {id_: [answer._asdict() for answer in p.n_best] for id_, p in by_id.items()},
    )
    if unanswerable:
        write_json(directory / "null_odds.json", {id_: p.null_odds for id_, p in by_id.items()})

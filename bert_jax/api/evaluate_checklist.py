"""Runs the tests of a checklist on a classifier."""

import itertools
from typing import Any

from etils import epath

from bert_jax.errors import UserError
from bert_jax.evaluation.checklists import Said, read_cases, results
from bert_jax.inference.trained import load
from bert_jax.storage import write_json
from bert_jax.tasks import ClassificationTask
from bert_jax.train.weights import TRAINED


def evaluate_checklist(
    model: epath.PathLike,
    path: epath.PathLike,
    *,
    step: int | None = None,
    weights: str = TRAINED,
    output: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Counts the cases of each test of a checklist that a classifier fails.

    Args:
      model: directory of a fine-tuned classifier, of any kind that `bert_jax.load` reads.
      path: file of the cases; see `bert_jax.evaluation.checklists`.
      step: checkpoint of a run; None for the newest.
      weights: which of a run, "trained", "ema" or "average:N"; see `bert_jax.train.weights`.
      output: directory for `checklist.json`, which holds the result.

    Returns:
      "path", and what `bert_jax.evaluation.checklists.results` gives.

    Raises:
      UserError: something is wrong with the file, the output or the model, which must predict one
        class for each text.
    """
    if output is not None and epath.Path(output).is_file():
        raise UserError(f"{output}: is a file; name a directory")
    bert = load(model, step, weights=weights)
    task = bert.text_task()
    bert.require(*task.head.parts(bert.architecture))
    if not isinstance(task, ClassificationTask) or task.regression:
        raise UserError(f"{model}: a checklist needs a classifier that predicts one class a text")
    cases = read_cases(path, bert.labels)
    verdicts = bert.classify(text for case in cases for text in case.all_texts)
    said = (Said(task.said(found)["label"], found) for found in verdicts if isinstance(found, dict))
    of_cases = [list(itertools.islice(said, len(case.all_texts))) for case in cases]
    found = {"path": str(path)} | results(cases, of_cases)
    if output is not None:
        epath.Path(output).mkdir(parents=True, exist_ok=True)
        write_json(epath.Path(output) / "checklist.json", found)
    return found

"""Scores a model on a suite, without fine-tuning."""

import json
from typing import Any

import jax
import numpy as np
from etils import epath

from bert_jax.data.suites import suite_name
from bert_jax.errors import UserError
from bert_jax.evaluation.suites import open_suite
from bert_jax.inference.trained import TrainedBert, load
from bert_jax.parallel import hosts
from bert_jax.report.suites import draw_suite
from bert_jax.storage import write_json, write_text
from bert_jax.terminal import json_line, progress
from bert_jax.train.checkpoints import latest_step
from bert_jax.train.weights import TRAINED


def evaluate_suite(
    model: epath.PathLike,
    suite: str,
    *,
    method: str | None = None,
    step: int | None = None,
    weights: str = TRAINED,
    output: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Scores the sentences of a suite, and says how often the right one of a pair scores higher.

    Args:
      model: directory of a training run, or of any model that `bert_jax.load` reads.
      suite: "blimp:PATH", "zorro:PATH", "pairs:PATH" or "cola:PATH"; see `bert_jax.data.suites`.
      method: how a sentence is scored, see `TrainedBert.score`.
      step: checkpoint of a run; None for the newest.
      weights: which of a run, "trained", "ema" or "average:N"; see `bert_jax.train.weights`.
      output: directory for `scores.json`, which holds the result; `sentences.jsonl`, the score of
        each sentence; and, for pairs, `paradigms.png`.

    Returns:
      "suite", "path", "method" and "step" of the checkpoint, if there is one, and what `to_dict` of
      `bert_jax.evaluation.suites.Results` gives.

    Raises:
      UserError: something is wrong with the suite or the output, or the model has no masked_lm.
    """
    name = suite_name(suite)
    with hosts.agreement():
        found = open_suite(name)
        if output is not None and epath.Path(output).is_file():
            raise UserError(f"{output}: is a file; name a directory")
        bert = load(model, step, weights=weights)
        method = method or bert.method
        mine = _scores(bert, found.texts[jax.process_index() :: jax.process_count()], method)
    scored = np.empty((len(found.texts), 2))
    for process, some in enumerate(hosts.gather(json.dumps(mine))):
        scored[process :: jax.process_count()] = np.array(json.loads(some)).reshape(-1, 2)
    totals, counts = scored[:, 0], scored[:, 1].astype(int)
    step = latest_step(model) if step is None else step
    about = {"suite": name.kind, "path": name.path, "method": method, "step": step}
    scores = about | found.results(totals, counts).to_dict()
    if output is not None and hosts.is_primary():
        directory = epath.Path(output)
        directory.mkdir(parents=True, exist_ok=True)
        lines = (json_line(record) + "\n" for record in found.details(totals, counts))
        write_text(directory / "sentences.jsonl", "".join(lines))
        if "by_paradigm" in scores:
            title = f"{name.kind} by {method}: {epath.Path(model).resolve().name}"
            title += "" if step is None else f", step {step:,}"
            draw_suite(scores, directory / "paradigms.png", title=title)
        write_json(directory / "scores.json", scores)
    return scores


def _scores(bert: TrainedBert, texts: list[str], method: str) -> list[tuple[float, int]]:
    """Score and number of tokens of each text."""
    found = []
    with progress("sentences", len(texts), " sentences") as bar:
        for score in bert.score(iter(texts), method):
            found.append((score.total, len(score.tokens)))
            bar.update(1)
    return found

"""Scores a fine-tuned model on perturbed examples."""

from collections.abc import Sequence
from typing import Any

from etils import epath
from msgspec import to_builtins

from bert_jax.api.evaluate import features_of, open_task, score_examples
from bert_jax.errors import UserError
from bert_jax.evaluation.robustness import Comparison, perturb
from bert_jax.evaluation.task_scores import Examples
from bert_jax.parallel import hosts
from bert_jax.report.robustness import draw_drops
from bert_jax.storage import write_json, write_text
from bert_jax.tasks.perturbations import PERTURBATIONS, perturbations
from bert_jax.terminal import json_line
from bert_jax.train.weights import TRAINED


def evaluate_robustness(
    model: epath.PathLike,
    data: str = "dev",
    *,
    perturb_by: Sequence[str] = tuple(PERTURBATIONS),
    names: str | None = None,
    seed: int = 0,
    step: int | None = None,
    weights: str = TRAINED,
    output: epath.PathLike | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores a model of a task on examples before and after perturbations of their texts.

    Args:
      model: as `workdir` of `bert_jax.evaluate`.
      data: examples, as for `bert_jax.evaluate`.
      perturb_by: names of perturbations; see `bert_jax.tasks.perturbations`.
      names: for "names", a file of names, one in a line, with a blank line between groups; names
        of a group are swapped.
      seed: seed of the perturbations and of the bootstrap.
      step: checkpoint of a run; None for the newest, or the best of fine-tuning.
      weights: which of a run, "trained", "ema" or "average:N"; see `bert_jax.train.weights`.
      output: directory for `robustness.json`, which holds the result; `examples.jsonl`, the texts
        before and after; and `robustness.png`.
      overrides: as for `bert_jax.evaluate`.

    Returns:
      What `to_dict` of `bert_jax.evaluation.robustness.Robustness` gives, and "data" and "step".

    Raises:
      UserError: as `bert_jax.evaluate`; a perturbation or the file of names is wrong; or the
        examples of the task cannot be perturbed.
    """
    workdir = epath.Path(model)
    with hosts.agreement():
        kinds = perturbations(perturb_by, names)
        if output is not None and epath.Path(output).is_file():
            raise UserError(f"{output}: is a file; name a directory")
        opened = open_task(workdir, step, weights, data, overrides)
        task, examples = opened.task, opened.examples
        perturbed = {kind: perturb(task, examples, kind, f, seed) for kind, f in kinds.items()}
        comparison = Comparison(examples, perturbed, seed)
        features = features_of(opened.model, task, comparison.examples)
    found = score_examples(opened, Examples(comparison.examples, features, labelled=False))
    result = comparison.robustness(task, found.predictions).to_dict()
    result |= {"data": data, "step": opened.step}
    if output is not None and hosts.is_primary():
        directory = epath.Path(output)
        directory.mkdir(parents=True, exist_ok=True)
        lines = (
            {"perturbation": kind, "before": to_builtins(old), "after": to_builtins(new)}
            for kind, some in perturbed.items()
            for old, new in zip(examples, some.examples)
            if new is not old
        )
        write_text(directory / "examples.jsonl", "".join(json_line(x) + "\n" for x in lines))
        draw_drops(result, directory / "robustness.png", title=workdir.resolve().name)
        write_json(directory / "robustness.json", result)
    return result

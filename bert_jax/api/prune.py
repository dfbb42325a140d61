"""Prunes the heads and layers of a fine-tuned model that its task needs least."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from bert_jax.api.evaluate import features_of
from bert_jax.errors import UserError
from bert_jax.evaluation.importance import Importance, importance
from bert_jax.evaluation.task_scores import Examples, TaskScores
from bert_jax.inference.fine_tuned import task_of
from bert_jax.interop.formats import read
from bert_jax.interop.portable import Portable, structure_of
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.int8 import is_int8
from bert_jax.model.pruning import check_layers, kept_layers, scaled
from bert_jax.objective.finetuning import FineTuning
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.report.pruning import draw_pruning
from bert_jax.storage import whole_folder, write_json
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.protocol import AnyTask
from bert_jax.train.weights import TRAINED

BATCH = 32
SHARES = tuple(tenth / 10 for tenth in range(10))  # of heads, in the curve
CURVES, PICTURE, MODEL = "pruning.json", "pruning.png", "model"


def prune(
    model: epath.PathLike,
    output: epath.PathLike,
    *,
    data: str,
    dev: str,
    heads: float = 0.0,
    layers: int = 0,
    examples: int = 512,
    step: int | None = None,
    weights: str = TRAINED,
) -> dict[str, Any]:
    """Measures how important heads and layers are, scores the model without them, and prunes it.

    Args:
      model: a fine-tuned model, of any format that `bert_jax.load` reads, but not in int8.
      output: new directory for `pruning.json` and `pruning.png`; and, if anything is to be pruned,
        for the pruned `model`, as `convert --to=bert_jax` writes it.
      data: examples of the task by which importance is measured, such as its training examples.
      dev: examples by which the pruned models of the curves are scored.
      heads: share of all heads to prune. They add nothing afterwards; the arrays keep their shapes.
      layers: how many layers to leave out.
      examples: how many of `data` to take, from the first.
      step: checkpoint of a workdir; None for the newest.
      weights: which of a workdir; see `bert_jax.train.weights`.

    Returns:
      What is in `pruning.json`.

    Raises:
      UserError: the model has no head of a task, or its layers are of several kinds, the examples
        cannot be read, or `output` is in use.
    """
    source = read(model, step, weights=weights)
    if is_int8(source.params):
        raise UserError(f"{model} is in int8: prune the model that it was made of")
    if not 0 <= heads < 1:
        raise UserError(f"--heads={heads}: a share of all heads, from 0 to less than 1")
    if not 0 <= layers < source.architecture.num_layers:
        raise UserError(f"--layers={layers}: the model has {source.architecture.num_layers}")
    if layers:
        check_layers(source.architecture)
    task = task_of(source)
    with whole_folder(output, last=CURVES) as folder:
        found = _importance(source, task, task.read(data)[:examples])
        metric, score = _scorer(source, task, task.read(dev))
        curves = _curves(source, found, score)
        result = {
            "metric": metric,
            "importance": {"heads": found.heads.tolist(), "layers": found.layers.tolist()},
            "curves": {
                name: [{"share": share, "score": points[share]} for share in points]
                for name, points in curves.items()
            },
        }
        draw_pruning(curves, metric, folder / PICTURE)
        if heads or layers:
            pruned = _pruned(source, found, heads, layers)
            result["pruned"] = {
                "heads": found.least_heads(heads).astype(int).tolist(),
                "layers": sorted({*range(len(found.layers))} - {*found.layers_without(layers)}),
                "score": score(pruned),
            }
            write_workdir(epath.Path(folder) / MODEL, pruned)
        write_json(folder / CURVES, result)
    return result


def _pruned(model: Portable, found: Importance, heads: float, layers: int) -> Portable:
    keep = found.layers_without(layers)
    kept = jnp.asarray(~found.least_heads(heads), jnp.float32)
    params = jax.device_get(scaled(model.params, kept, jnp.ones(len(kept))))
    architecture = replace(model.architecture, num_layers=len(keep))
    return model._replace(architecture=architecture, params=kept_layers(params, keep))


def _importance(model: Portable, task: AnyTask, examples: Sequence[Any]) -> Importance:
    batches = ExampleBatches(
        features_of(model, task, examples),
        task.head,
        pad_id=model.tokenizer.pad_id,
        batch_size=BATCH,
        seed=None,
        packing=False,
    )
    objective = FineTuning(structure_of(model).graphdef, task.head)
    rows = (batches.batch(step) for step in range(batches.steps_per_epoch))
    shape = model.architecture.num_layers, model.architecture.num_heads
    return importance(objective, model.params, rows, shape)


def _scorer(
    model: Portable, task: AnyTask, examples: list[Any]
) -> tuple[str, Callable[[Portable], float]]:
    """The name of the task's first metric, and the function that computes it for a model."""
    mesh, features = make_mesh(), features_of(model, task, examples)
    by_layers: dict[int, TaskScores] = {}

    def metrics(model: Portable) -> dict[str, float]:
        layers = model.architecture.num_layers
        structure = structure_of(model)
        if layers not in by_layers:  # compiled once for each number of layers
            by_layers[layers] = TaskScores(
                task,
                Examples(examples, features, labelled=True),
                structure,
                model.numerics,
                mesh,
                tokenizer=model.tokenizer,
                batch_size=BATCH,
            )
        params = rules.put_params(model.params, mesh, structure.axes)
        return by_layers[layers](params, quick=True).metrics

    metric = next(iter(metrics(model)))
    return metric, lambda model: metrics(model)[metric]


def _curves(
    model: Portable, found: Importance, score: Callable[[Portable], float]
) -> dict[str, dict[float, float]]:
    """What is pruned -> its share -> the score."""
    curves = {"heads": {share: score(_pruned(model, found, share, 0)) for share in SHARES}}
    number = model.architecture.num_layers
    try:
        check_layers(model.architecture)
    except UserError:
        return curves
    curves["layers"] = {
        count / number: score(_pruned(model, found, 0.0, count)) for count in range(number)
    }
    return curves

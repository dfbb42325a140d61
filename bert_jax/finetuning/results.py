"""Scores, predictions and pictures of a run that is over."""

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.fields import to_plain
from bert_jax.finetuning.setup import Setup
from bert_jax.parallel import hosts, rules
from bert_jax.report.confusion import draw_confusion
from bert_jax.report.live import draw_run
from bert_jax.report.metrics_file import finite
from bert_jax.report.reliability import draw_reliability
from bert_jax.report.units import listed, shown
from bert_jax.storage import read_json, write_json
from bert_jax.tasks.classification.calibration import Calibration, calibration, fitted_temperature
from bert_jax.tasks.protocol import AnyTask, settings
from bert_jax.train.checkpoints import Checkpoints, DamagedCheckpoint, saved_steps


def report(workdir: epath.Path, setup: Setup) -> None:
    """Scores the best checkpoint and writes results, predictions and curves."""
    task, data = setup.task, setup.data
    with Checkpoints(workdir / "best", read_only=True) as best:
        try:
            stored, step = best.read_params()
        except DamagedCheckpoint as error:
            back = max((step for step in saved_steps(workdir) if step < error.step), default=0)
            raise UserError(
                f"{error.fact}: train it again with --config.resume_from={back}"
            ) from error
    params = rules.put_params(stored, setup.mesh, setup.model.axes)
    results: dict[str, Any] = {"step": step}
    matrices: dict[str, np.ndarray] = {}
    calibrations: dict[str, dict[str, Calibration]] = {}
    temperature = 1.0
    for split in ("dev", "test"):
        if split not in data:
            continue
        examples = data[split].examples
        metrics, predictions, logits, task = setup.scores[split](params, task)
        if split == "dev" and task != setup.task and hosts.is_primary():
            keep_fitted(workdir, setup.task, task)
        if hosts.is_primary():
            name = task.submission_name(getattr(task, split))
            name = name or f"{split}_predictions{task.predictions_suffix}"
            task.write_predictions(workdir / name, examples, predictions)
        if not data[split].labelled:
            continue
        baseline = task.baseline(data["train"].examples, examples)
        results[split] = {"metrics": finite(metrics), "baseline": finite(baseline)}
        hosts.print_once(f"{split} at step {step}: {listed(metrics)}", result=True)
        if baseline:
            hosts.print_once(f"{split} baseline: {listed(baseline)}", result=True)
        if not task.label_names:
            continue
        classes = results[split]["classes"] = task.per_class(predictions, examples)
        for row in classes:
            numbers = "  ".join(f"{name} {row[name]:.1%}" for name in ("precision", "recall", "f1"))
            line = f"{split} {row['label']}: {numbers}  support {row['support']:,}"
            hosts.print_once(line, result=True)
        matrix = task.confusion_matrix(predictions, examples)
        if matrix is not None:
            results[split]["confusion"] = matrix.tolist()
            matrices[split] = matrix
        true = task.true_classes(examples)
        if true is None:
            continue
        outputs, true = np.stack(logits)[true >= 0], true[true >= 0]
        if split == "dev":
            temperature = fitted_temperature(outputs, true)
        before, after = (calibration(outputs, true, t) for t in (1.0, temperature))
        calibrations[split] = {"as they are": before, f"logits / {temperature:.3g}": after}
        results[split]["calibration"] = {
            "ece": before.ece,
            "temperature": temperature,
            "ece_at_temperature": after.ece,
            "loss_at_temperature": after.nll,
        }
        hosts.print_once(
            f"{split} calibration error {before.ece:.1%}, with logits divided by "
            f"{temperature:.3g} (fitted on dev) {after.ece:.1%}",
            result=True,
        )
    if hosts.is_primary():
        write_json(workdir / "results.json", results)
        # Pictures come last: nothing that they need can then be lost.
        for split, found in matrices.items():
            draw_confusion(found, task.label_names, workdir / f"{split}_confusion.png")
        for split, both in calibrations.items():
            draw_reliability(both, workdir / f"{split}_calibration.png")
        draw_run(workdir)


def keep_fitted(workdir: epath.Path, task: AnyTask, fitted: AnyTask) -> None:
    """Prints what a task has fitted to the best model, and notes it beside run and model."""
    before, after = (settings(to_plain(each)) for each in (task, fitted))
    for name, value in after.items():
        if value != before[name]:
            hosts.print_here(f"{name}, fitted on dev: {', '.join(map(str, value))}")
    for directory in (workdir, workdir / "best"):
        described = read_json(directory / "config.json")
        write_json(directory / "config.json", described | {"task": after})


def summarize_seeds(workdir: epath.Path, runs: Iterable[epath.Path]) -> None:
    """Writes and prints median, mean and standard deviation of every metric over the runs."""
    results = [read_json(run / "results.json") for run in runs]
    summary: dict[str, Any] = {}
    for split in ("dev", "test"):
        if split not in results[0]:
            continue
        for name in results[0][split]["metrics"]:
            if not all(name in result[split]["metrics"] for result in results):
                continue  # not a finite number for every seed
            values = [result[split]["metrics"][name] for result in results]
            numbers = {
                "median": statistics.median(values),
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values),
            }
            summary.setdefault(split, {})[name] = numbers | {"values": values}
            spread = "  ".join(f"{what} {shown(name, x)}" for what, x in numbers.items())
            line = f"{split} {name}, {len(values)} seeds: {spread}"
            hosts.print_here(line, result=True)
    write_json(workdir / "results.json", summary)

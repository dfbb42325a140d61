"""How much each token contributes to a prediction."""

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from bert_jax.data.packing import Batch
from bert_jax.errors import UserError
from bert_jax.inference import programs
from bert_jax.inference.attributions import (
    FAR,
    Attribution,
    Explained,
    Layout,
    Target,
    answer_target,
    check_target,
    class_targets,
    entity_targets,
)
from bert_jax.inference.fine_tuned import known_task, task_as, text_kind
from bert_jax.inference.runner import Outputs, Runner
from bert_jax.inference.texts import checked
from bert_jax.inference.uses.answer import asked_of
from bert_jax.inference.uses.chunks import chunks
from bert_jax.inference.uses.classify import text_examples
from bert_jax.inference.uses.tag import words_of
from bert_jax.model.int8 import is_int8
from bert_jax.tasks import AnsweringTask, TaggingTask, TextTask
from bert_jax.tasks.protocol import AnyTask

_log = logging.getLogger(__name__)


def attributions(
    runner: Runner,
    texts: Iterable[Any],
    target: str | None,
    *,
    steps: int,
    baseline: str,
    max_seq_length: int | None,
) -> Iterator[list[Attribution]]:
    """What is explained of each text; see `TrainedBert.attributions`."""
    task = explained_task(runner, max_seq_length)
    check_target(task, target)
    if runner.is_export or is_int8(runner.params):
        kind = "an export" if runner.is_export else "a model in int8"
        raise UserError(f"{kind} has no gradients: use the model that it was made of")
    layout = Layout(
        task.head,
        task.num_labels,
        runner.architecture,
        runner.tokenizer,
        steps=steps,
        baseline=baseline,
        num_rows=runner.devices.mesh.size,
        tokens_at_once=runner.devices.tokens_per_device,
    )
    pieces, points = runner.tokenizer.pieces, functools.cache(layout.points)
    options = {
        "head": task.head,
        "architecture": runner.architecture,
        "from_zero": baseline == "zero",
    }
    program = runner.program(programs.attributions, *options, exact=True)

    def start(batch: Batch) -> dict[str, jax.Array]:
        length = batch.rows["input_ids"].shape[1]
        return program(runner.params, runner.devices.put(batch), *points(length), **options)

    def finish(batch: Batch, found: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        for row, stop in zip(batch.row, batch.stop):
            of_row = {name: values[row] for name, values in found.items()}
            yield {name: x[:stop] if x.ndim else float(x) for name, x in of_row.items()}

    def found_in_texts() -> Iterator[list[Attribution]]:
        far, worst = 0, 0.0
        for of_texts in _targets(runner, task, texts, target):
            flat = itertools.chain.from_iterable(of_texts)
            results = runner.devices.run_packed(flat, layout.pack, start, finish)
            for items in of_texts:
                found = [
                    Attribution(
                        item.target,
                        tokens=[pieces[id_] for id_ in item.ids],
                        b_start=int(item.b_start),
                        **next(results),
                    )
                    for item in items
                ]
                errors = [each.completeness_error for each in found]
                far += sum(error > FAR for error in errors)
                worst = max(worst, *errors, 0.0)
                yield found
        if far:
            _log.warning(
                f"{far} attributions have a completeness error above {FAR:.0%}, up to "
                f"{worst:.0%}: take more steps than {steps}"
            )

    return found_in_texts()


def explained_task(runner: Runner, max_seq_length: int | None) -> AnyTask:
    """The task whose predictions are explained; see `TrainedBert.explained_task`."""
    kinds: tuple[type[AnyTask], ...] = (text_kind(runner.model), TaggingTask, AnsweringTask)
    known = known_task(runner.model)
    fitting = [kind for kind in kinds if isinstance(known, kind)]
    fitting += [kind for kind in kinds if kind().head.part in runner.functions]
    task = task_as(runner.model, [*fitting, *kinds][0], max_seq_length=max_seq_length)
    runner.require(*task.head.parts(runner.architecture))
    return task


def _targets(
    runner: Runner, task: AnyTask, texts: Iterable[Any], target: str | None
) -> Iterator[list[list[Explained]]]:
    """Sequences of some texts at a time, with what to explain in each."""
    if isinstance(task, TextTask):
        for examples in chunks(text_examples(runner, task, texts)):
            logits = runner.logits(task.head, examples)
            yield [
                [Explained(*example, found) for found in class_targets(task, each, target)]
                for example, each in zip(examples, logits)
            ]
    elif isinstance(task, TaggingTask):
        for some in chunks(checked(texts, pair=False, words=True)):
            of_each = [words_of(runner, task, item) for item in some]
            found = runner.outputs(task, [sentence for *_, sentence in of_each])
            places = zip(of_each, found.predictions, found.windows_of_examples())
            yield [
                [
                    _explained(found, *each)
                    for each in entity_targets(
                        task, text, words, prediction, found.features, windows, target
                    )
                ]
                for (text, words, _), prediction, windows in places
            ]
    else:
        for asked in asked_of(texts):
            found = runner.outputs(task, asked)
            yield [
                [_explained(found, *answer_target(each, found.features, windows, found.logits))]
                for each, windows in zip(found.predictions, found.windows_of_examples())
            ]


def _explained(found: Outputs, window: int, target: Target) -> Explained:
    """What to explain in a window."""
    return Explained(found.features.input_ids[window], found.features.b_start[window], target)

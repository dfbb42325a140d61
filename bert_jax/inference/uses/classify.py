"""Classes of texts."""

from collections.abc import Iterable, Iterator
from typing import Any

from bert_jax.data.packing import Example
from bert_jax.inference.fine_tuned import known_task, task_as, text_kind
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import Text, checked
from bert_jax.model.heads import SEQUENCE_CLASSIFIER
from bert_jax.tasks import TextTask
from bert_jax.tasks.classification.decoding import Verdict, verdict


def classify(
    runner: Runner, texts: Iterable[Text], max_seq_length: int | None
) -> Iterator[Verdict]:
    """For each text the classes with their probabilities; see `TrainedBert.classify`."""
    runner.require(*SEQUENCE_CLASSIFIER.parts(runner.architecture))
    examples = text_examples(runner, text_task(runner, max_seq_length), texts)
    labels, meant = runner.model.labels, runner.model.problem_type
    logits = runner.logits(SEQUENCE_CLASSIFIER, examples)
    return (verdict(each, labels, meant) for each in logits)


def text_task(runner: Runner, max_seq_length: int | None, **options: Any) -> TextTask:
    """The task of the classifier; see `TrainedBert.text_task`."""
    kind = text_kind(runner.model)
    return task_as(runner.model, kind, max_seq_length=max_seq_length, **options)


def text_examples(runner: Runner, task: TextTask, texts: Iterable[Any]) -> Iterator[Example]:
    """Texts or pairs, whichever the classifier was fine-tuned on, as its task reads them."""
    known = isinstance(known_task(runner.model), TextTask)
    takes_pairs = bool(task.text_b)
    some = checked(texts, text=not (known and takes_pairs), pair=takes_pairs or not known)
    return runner.tokenized(some, runner.task_limit(task))

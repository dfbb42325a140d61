"""Entities in texts."""

from collections.abc import Iterable, Iterator

from bert_jax.inference.fine_tuned import task_as
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import checked, excerpt
from bert_jax.inference.uses.chunks import chunks
from bert_jax.tasks import TaggingTask
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.plain_text import Entity, join_words

Words = str | list[str] | Sentence


def tag(
    runner: Runner, texts: Iterable[Words], max_seq_length: int | None
) -> Iterator[list[Entity]]:
    """The entities of each text; see `TrainedBert.tag`."""

    def entities() -> Iterator[list[Entity]]:
        for some in chunks(checked(texts, pair=False, words=True)):
            of_each = [words_of(runner, task, item) for item in some]
            found = runner.outputs(task, [sentence for *_, sentence in of_each]).predictions
            for (text, spans, _), prediction in zip(of_each, found):
                yield task.find_entities(text, spans, prediction)

    task = task_as(runner.model, TaggingTask, max_seq_length=max_seq_length)
    runner.require(*task.head.parts(runner.architecture))
    return entities()


def words_of(
    runner: Runner, task: TaggingTask, item: Words
) -> tuple[str, list[tuple[int, int]], Sentence]:
    """A text, the characters of its words, and the words as a task takes them."""
    if isinstance(item, str):
        spans = task.split_words(runner.tokenizer, item)
        words = [item[start:end] for start, end in spans]
        return item, spans, Sentence(words, None, excerpt(item))
    sentence = item if isinstance(item, Sentence) else Sentence(item, None, excerpt(item))
    return *join_words(sentence.words), sentence

"""What the tasks of `predict` read: texts on the command line, files and standard input."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from etils import epath

from bert_jax.errors import UserError
from bert_jax.inference.text_lines import (
    FORMATS,
    TABLES,
    Columns,
    GivenLines,
    Line,
    Lines,
    TextLines,
    check_file,
    format_of,
)

if TYPE_CHECKING:
    from bert_jax.tasks.protocol import AnyTask


class Input(NamedTuple):
    """What a task of `predict` reads.

    Attributes:
      formats: names of formats; the first is that of standard input.
      takes: what the arguments TEXT are, for help.
      most, least: how many of them make one example; most = 0 for one example each.
    """

    formats: tuple[str, ...]
    takes: str
    least: int = 1
    most: int = 2

    @property
    def columns(self) -> Columns:
        """Where tables have the texts of a model of which no more is known."""
        both = Columns()
        return Columns(
            both.text if self.least == 1 else (),
            both.pair if self.most == 2 else (),
            ("tokens", "words") if "conll" in self.formats else (),  # of a tagger's examples
        )


SINGLE = Input(("text", *TABLES), "each TEXT is one", most=0)
WORDS = Input(("text", *TABLES, "conll"), "each TEXT is one", most=0)
EITHER = Input(("text", *TABLES), "two TEXTs are a pair")
PAIRS = Input(TABLES, "two TEXTs are the pair", least=2)
QUESTIONS = Input((*TABLES, "squad"), "question and context", least=2)
ANY = Input(("text", *TABLES, "conll", "squad"), "two TEXTs are a pair")
_MEANINGS = {
    "text": "text: one per line",
    "tsv": "tsv, csv, jsonl, json, parquet: rows with the columns of fine-tuning, or of --columns, "
    "or {columns}{pairs}",
    "conll": "conll: words, one per line",
    "squad": "squad: SQuAD's JSON",
}


def of_task(task: "AnyTask") -> Input:
    """What the verb of `predict` for a task reads."""
    from bert_jax.tasks import AnsweringTask, TaggingTask

    return {AnsweringTask: QUESTIONS, TaggingTask: WORDS}.get(type(task), EITHER)


def add(task: argparse.ArgumentParser, given: Input) -> None:
    """Adds the arguments of a task of `predict` that say what it reads."""
    task.add_argument(
        "input",
        nargs="*",
        metavar="FILE | TEXT",
        help=f"a file, or texts: {given.takes}. What does not exist and has none of the suffixes "
        f"{', '.join(FORMATS)} is a text (default: standard input)",
    )
    single, pair = given.columns.text[:1], " and ".join(n[0] for n in given.columns.pair)
    columns = ", or ".join([*single, *([pair] if pair else [])])
    meanings = "; ".join(_MEANINGS[name] for name in given.formats if name in _MEANINGS)
    task.add_argument(
        "--format",
        choices=given.formats,
        help=meanings.format(columns=columns, pairs="; tsv without a header: pairs" * bool(pair))
        + f" (default: by the suffix of FILE, or {given.formats[0]})",
    )
    task.add_argument(
        "--columns",
        metavar="NAME[,NAME]",
        help="column of the text in a table, or columns of a pair; 1, 2, ... without a header",
    )
    task.add_argument(
        "--skip-bad-lines", action="store_true", help="leave out unreadable lines, and count them"
    )
    task.set_defaults(given=given)


def read(arguments: argparse.Namespace, *, must_have: str = "") -> Lines:
    """The texts to predict for, the first of them already read.

    Args:
      arguments: with those of `add`, and `model`.
      must_have: what every text must contain; if not empty, blank lines are skipped.

    Raises:
      UserError: there is no such file, or it has no text that can be read.
    """
    given: Input = arguments.given
    texts = arguments.input or ["-"]
    files = [text for text in texts if _is_source(text)]
    if not files:
        return _given_texts(texts, given, must_have)
    if len(texts) > 1:
        raise UserError(f"{files[0]} is a file: give one FILE, or texts")
    (name,) = files
    by_suffix = None if name == "-" else format_of(name)
    if by_suffix == "json" and "squad" in given.formats:
        by_suffix = "squad"
    text_format = arguments.format or by_suffix or given.formats[0]
    if text_format not in given.formats:
        raise UserError(f"{name}: takes {', '.join(given.formats)}; --format says which it is")
    if arguments.columns and text_format not in TABLES:
        raise UserError(f"--columns={arguments.columns}: {name} is no table; see --format")
    if text_format in ("conll", "squad"):
        return _examples(name, arguments.model, text_format)
    columns = given.columns
    if text_format != "text":
        columns = _columns(arguments, given)
    lines = TextLines(name, text_format, columns, arguments.skip_bad_lines, must_have)
    lines.check()
    return lines


def _is_source(text: str) -> bool:
    """Whether an argument is a file or a dataset, and not a text."""
    return (
        text == "-"
        or format_of(text) is not None
        or text.startswith("tfds:")
        or text.startswith("gs://")
        or os.path.exists(text)
    )


def _given_texts(texts: Sequence[str], given: Input, must_have: str) -> GivenLines:
    for text in texts:
        if not text.strip():
            raise UserError("a TEXT is empty")
        if must_have not in text:
            raise UserError(f"no {must_have} in {text!r}: put one where a word is to be guessed")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{text!a} is not UTF-8") from error
    if given.most == 0:
        return GivenLines([Line(n, text, {"text": text}) for n, text in enumerate(texts, 1)])
    if not given.least <= len(texts) <= given.most:
        raise UserError(f"{len(texts)} texts on the command line: {given.takes}")
    if len(texts) == 1:
        return GivenLines([Line(1, texts[0], {"text": texts[0]})])
    return GivenLines([Line(1, (texts[0], texts[1]), {"text_a": texts[0], "text_b": texts[1]})])


def _columns(arguments: argparse.Namespace, given: Input) -> Columns:
    """The columns of a table: those that the user names, else of fine-tuning, else usual ones."""
    usual = given.columns
    if arguments.columns:
        names = arguments.columns.split(",")
        if not given.least <= len(names) <= (given.most or 1):
            raise UserError(f"--columns={arguments.columns}: {len(names)} columns; {given.takes}")
        return Columns((names[0],), ()) if len(names) == 1 else Columns((), tuple(zip(names)))
    from bert_jax.inference.fine_tuned import task_in
    from bert_jax.tasks import ExtractionTask, GenerationTask, TextTask
    from bert_jax.tasks.classification.names import all_of

    task = task_in(epath.Path(arguments.model))
    if given is SINGLE and isinstance(task, (ExtractionTask, GenerationTask)):
        read = task.document if isinstance(task, ExtractionTask) else task.source
        return Columns((*all_of(read), *usual.text), ())
    if not isinstance(task, TextTask) or given is not EITHER:
        return usual
    if not task.text_b:
        return Columns((*all_of(task.text_a), *usual.text), ())
    pair = ((*all_of(task.text_a), *usual.pair[0]), (*all_of(task.text_b), *usual.pair[1]))
    return Columns((), pair)


def _examples(name: str, model: str, text_format: str) -> GivenLines:
    """The examples of a file in the format of a task, read as in fine-tuning."""
    check_file(name)

    from bert_jax.inference.fine_tuned import task_in
    from bert_jax.tasks import AnsweringTask, TaggingTask

    task = task_in(epath.Path(model))
    if text_format == "squad":
        answering = task if isinstance(task, AnsweringTask) else AnsweringTask()
        return GivenLines(
            [
                Line(
                    n,
                    (q.question, q.context),
                    {"id": q.id, "text_a": q.question, "text_b": q.context},
                )
                for n, q in enumerate(answering.read(name, labelled=False), 1)
            ]
        )
    tagging = task if isinstance(task, TaggingTask) else TaggingTask()
    return GivenLines(
        [
            Line(n, sentence, {"text": " ".join(sentence.words), "words": list(sentence.words)})
            for n, sentence in enumerate(tagging.read(name, labelled=False), 1)
        ]
    )

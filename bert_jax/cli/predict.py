"""`bert-jax predict`: uses a trained model on text."""

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from etils import epath

from bert_jax.cli import flags, inputs
from bert_jax.errors import UserError
from bert_jax.inference.choices import BASELINES, COMPUTE_DTYPES, POOLINGS
from bert_jax.inference.text_lines import Line, Lines
from bert_jax.terminal import printable, progress, say, say_json

if TYPE_CHECKING:
    from bert_jax.inference.attributions import Attribution
    from bert_jax.inference.trained import TrainedBert
    from bert_jax.inference.uses.fill_mask import Guess
    from bert_jax.inference.uses.score import Score
    from bert_jax.tasks.answering.decoding import Prediction
    from bert_jax.tasks.classification.decoding import Verdict
    from bert_jax.tasks.extraction.task import Extract
    from bert_jax.tasks.tagging.plain_text import Entity

T = TypeVar("T")


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(prog="bert-jax predict", description="Uses a trained model on text.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for add_task in (
        _add_fill_mask,
        _add_next_sentence,
        _add_score,
        _add_features,
        _add_attention,
        _add_classify,
        _add_tag,
        _add_answer,
        _add_extract,
        _add_generate,
        _add_attributions,
    ):
        add_task(tasks)
    for task in tasks.choices.values():
        task.formatter_class = flags.HelpFormatter
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


def _add_fill_mask(tasks: Any) -> None:
    task = tasks.add_parser(
        "fill-mask",
        help="guess the words behind [MASK]",
        description="Guesses the words behind every [MASK] of a text, or <mask>, if the model's "
        "tokenizer spells it so. Prints each text, and under "
        "it a line for each mask: the most probable words with their probabilities.",
        epilog="example:\n  bert-jax predict fill-mask --model=runs/quickstart "
        '"The president of the United [MASK]."',
    )
    task.set_defaults(run=_fill_mask)
    _add_model(task)
    inputs.add(task, inputs.SINGLE)
    task.add_argument("--top-k", type=int, default=5, metavar="K", help="guesses for each mask")


def _fill_mask(arguments: argparse.Namespace) -> None:
    lines = inputs.read(arguments, must_have=_mask_token(arguments.model))
    bert = _load(arguments)

    def fill_mask(texts: Iterator[str]) -> Iterator[list[list["Guess"]]]:
        return bert.fill_mask(texts, arguments.top_k)

    for line, masks in _with_results(lines, fill_mask):
        say(line.text)
        for guesses in masks:
            say("   " + "  ".join(f"{g.token} {g.probability:.1%}" for g in guesses))
    _report_skipped(lines)


def _mask_token(model: str) -> str:
    """How a model's tokenizer spells [MASK], known before its parameters are read."""
    path = epath.Path(model)
    if not path.is_dir():
        return "[MASK]"

    from bert_jax.interop.tokenizer import read_tokenizer

    try:
        tokenizer = read_tokenizer(path)
    except UserError:  # loading the model says what is wrong
        return "[MASK]"
    return tokenizer.vocab[tokenizer.mask_id]


def _add_next_sentence(tasks: Any) -> None:
    task = tasks.add_parser(
        "next-sentence",
        help="print the probability that B follows A",
        description="Prints pairs of texts as JSON lines, with `probability`: that B follows A.",
        epilog="examples:\n  bert-jax predict next-sentence --model=runs/quickstart "
        '"Let us begin." "Let us go forward."\n'
        "  bert-jax predict next-sentence --model=runs/quickstart pairs.tsv",
    )
    task.set_defaults(run=_next_sentence)
    _add_model(task)
    inputs.add(task, inputs.PAIRS)


def _next_sentence(arguments: argparse.Namespace) -> None:
    lines, bert = inputs.read(arguments), _load(arguments)
    _say_results(lines, bert.next_sentence, lambda found: {"probability": round(found, 6)})


def _add_score(tasks: Any) -> None:
    task = tasks.add_parser(
        "score",
        help="print how probable texts are",
        description="Prints texts as JSON lines with their `score`, the pseudo-log-likelihood in "
        "nats: the sum over their tokens of the log probability of each, given all others "
        "(--method=causal: given those before it). "
        "`num_tokens`, `tokens` and `token_scores` are those of the tokens. Computed in fp32.",
        epilog="examples:\n  bert-jax predict score --model=runs/quickstart "
        '"The president spoke." "The president speak."\n'
        "  bert-jax predict score --model=runs/quickstart sentences.txt --method=within-word",
    )
    task.set_defaults(run=_score)
    _add_model(task, compute_dtype=False)
    inputs.add(task, inputs.SINGLE)
    flags.add_method(task)


def _score(arguments: argparse.Namespace) -> None:
    lines, bert = inputs.read(arguments), _load(arguments)

    def score(texts: Iterator[str]) -> Iterator["Score"]:
        return bert.score(texts, arguments.method)

    def fields(found: "Score") -> dict[str, Any]:
        return {
            "score": round(found.total, 6),
            "num_tokens": len(found.tokens),
            "tokens": found.tokens,
            "token_scores": [round(float(value), 6) for value in found.log_probs],
        }

    _say_results(lines, score, fields)


def _add_features(tasks: Any) -> None:
    task = tasks.add_parser(
        "features",
        help="turn texts into vectors",
        description="Turns texts, or pairs of texts, into vectors, one line at a time.",
        epilog="examples:\n  bert-jax predict features --model=runs/quickstart sentences.txt "
        "--output=sentences.npy\n"
        '  bert-jax predict features --model=runs/quickstart "One text."',
    )
    task.set_defaults(run=_features)
    _add_model(task)
    inputs.add(task, inputs.EITHER)
    task.add_argument(
        "--output",
        metavar="FILE",
        help=".jsonl, .npy (one array) or .parquet (default: JSON lines on standard output)",
    )
    task.add_argument(
        "--pooling",
        choices=POOLINGS,
        help="mean of all tokens, their largest values, vector of [CLS], pooler's output, or every "
        "token (default: that of sentence-transformers' files beside the model, else mean)",
    )
    task.add_argument(
        "--layers",
        type=_layers,
        default=-1,
        metavar="N[,N...]",
        help="layers to take; 0 is the embeddings, negative numbers count from the end, as in "
        "--layers=-4,-1 (default: -1, the last)",
    )


def _features(arguments: argparse.Namespace) -> None:
    from bert_jax.inference.vector_files import check_output, vector_file

    check_output(arguments.output, arguments.pooling)
    lines, bert = inputs.read(arguments), _load(arguments)

    def encode(texts: Iterator[Any]) -> Iterator[Any]:
        return bert.encode(texts, arguments.pooling, arguments.layers)

    with (
        vector_file(arguments.output) as write,
        progress("vectors", lines.size, "B" if lines.size else " texts") as bar,
    ):
        count, shape = 0, ()
        for line, vectors in _with_results(lines, encode):
            write(line, vectors, bert.tokens(line.text) if arguments.pooling == "tokens" else None)
            bar.update(line.size if lines.size else 1)
            count, shape = count + 1, vectors.shape
    if arguments.output is not None:
        each = " per token" if arguments.pooling == "tokens" else ""
        size = " x ".join(map(str, shape[1:] if each else shape))
        say(f"{arguments.output}: vectors of {count:,} texts, {size} numbers{each}")
    _report_skipped(lines)


def _add_attention(tasks: Any) -> None:
    task = tasks.add_parser(
        "attention",
        help="draw attention maps",
        description="Writes an HTML page to explore the attention of a text, or of a pair of "
        "texts, and beside it a PNG of all heads of all layers.",
        epilog="example:\n  bert-jax predict attention --model=runs/quickstart "
        '"Let us begin." "Let us go forward." --output=attention.html',
    )
    task.set_defaults(run=_attention)
    _add_model(task)
    task.add_argument("text_a", metavar="TEXT")
    task.add_argument("text_b", nargs="?", metavar="SECOND_TEXT")
    task.add_argument(
        "--output", type=epath.Path, required=True, metavar="FILE.html", help="file of the page"
    )


def _attention(arguments: argparse.Namespace) -> None:
    page, picture = arguments.output, arguments.output.with_suffix(".png")
    if page.suffix != ".html":
        raise UserError(f"--output={page}: the name must end in .html")

    bert = _load(arguments)

    from bert_jax.report.attention_maps import MAX_TOKENS, draw_picture, write_page

    pair = arguments.text_a, arguments.text_b
    text = arguments.text_a if arguments.text_b is None else pair
    tokens = [bert.tokenizer.pieces[token] for token in bert.tokenize(text).ids]
    if len(tokens) > MAX_TOKENS:
        raise UserError(f"the text has {len(tokens)} tokens, maps hold {MAX_TOKENS}: shorten it")
    attention = bert.attention(text)
    title = f"Attention of {Path(arguments.model).absolute().name}"
    write_page(page, tokens, bert.tokenize(text).b_start, attention, title=title)
    labelled = draw_picture(picture, tokens, attention, title=title)
    say(page)
    say(picture if labelled else f"{picture}, without the tokens: too many to be readable")


def _add_classify(tasks: Any) -> None:
    task = tasks.add_parser(
        "classify",
        help="classify or score texts",
        description="Classifies or scores texts, or pairs of texts, with a fine-tuned classifier "
        "or regression. Prints them as JSON lines with `label`, the predicted class, its "
        "`probability`, and the `probabilities` of all classes; or with `labels`, where a text may "
        "have several; or with the `score` that a regression predicts.",
        epilog="examples:\n  bert-jax predict classify --model=runs/sst2/best reviews.csv\n"
        '  bert-jax predict classify --model=runs/sst2/best "A wonderful film."',
    )
    task.set_defaults(run=_classify)
    _add_model(task)
    inputs.add(task, inputs.EITHER)
    _add_max_seq_length(task, "tokens to which longer texts are cut", "the model's positions")
    task.add_argument(
        "--thresholds",
        metavar="NAME=NUMBER[,...]",
        help="predict a class from this probability on; where a text may have several classes, a "
        "NUMBER alone is for all of them (default: as in fine-tuning)",
    )


def _classify(arguments: argparse.Namespace) -> None:
    lines, bert = inputs.read(arguments), _load(arguments)
    thresholds = arguments.thresholds.split(",") if arguments.thresholds else None
    task = bert.text_task(thresholds=thresholds)

    def classify(texts: Iterator[Any]) -> Iterator["Verdict"]:
        return bert.classify(texts, arguments.max_seq_length)

    _say_results(lines, classify, task.said)


def _add_tag(tasks: Any) -> None:
    task = tasks.add_parser(
        "tag",
        help="find entities in texts",
        description="Prints texts as JSON lines with the `entities` that a fine-tuned tagger "
        "finds: `type`, `text`, its characters `start` and `end`, and `score`, the mean "
        "probability of the tags of its words.",
        epilog="examples:\n  bert-jax predict tag --model=runs/ner/best articles.txt\n"
        '  bert-jax predict tag --model=runs/ner/best "Ada Lovelace lived in London."',
    )
    task.set_defaults(run=_tag)
    _add_model(task)
    inputs.add(task, inputs.WORDS)
    _add_max_seq_length(task, "tokens of the windows into which long texts are cut", "128")


def _tag(arguments: argparse.Namespace) -> None:
    lines, bert = inputs.read(arguments), _load(arguments)

    from bert_jax.tasks.tagging.writer import entity_fields

    def tag(texts: Iterator[Any]) -> Iterator[list["Entity"]]:
        return bert.tag(texts, arguments.max_seq_length)

    _say_results(lines, tag, lambda found: {"entities": entity_fields(found)})


def _add_answer(tasks: Any) -> None:
    task = tasks.add_parser(
        "answer",
        help="answer questions from a text",
        description="Prints questions (text_a) on a context (text_b) as JSON lines, with the "
        "`answer` in the context, its characters `start` and `end`, and its `probability` among "
        "the candidates. No answer is an empty text.",
        epilog='examples:\n  bert-jax predict answer --model=runs/squad/best "Who spoke?" '
        '"The president spoke."\n'
        "  bert-jax predict answer --model=runs/squad/best dev-v2.0.json",
    )
    task.set_defaults(run=_answer)
    _add_model(task)
    inputs.add(task, inputs.QUESTIONS)
    _add_max_seq_length(task, "tokens of the windows into which long texts are cut", "384")
    task.add_argument(
        "--unanswerable",
        action=argparse.BooleanOptionalAction,
        help="whether there may be no answer, as in SQuAD 2.0 (default: as in fine-tuning)",
    )
    task.add_argument(
        "--null-threshold",
        type=float,
        metavar="X",
        help="margin by which no answer must outscore the best one (default: as in fine-tuning)",
    )


def _answer(arguments: argparse.Namespace) -> None:
    lines, bert = inputs.read(arguments), _load(arguments)

    from bert_jax.tasks.answering.writer import answer_fields

    def answer(pairs: Iterator[Any]) -> Iterator["Prediction"]:
        return bert.answer(
            pairs,
            arguments.max_seq_length,
            unanswerable=arguments.unanswerable,
            null_threshold=arguments.null_threshold,
        )

    _say_results(lines, answer, answer_fields)


def _add_extract(tasks: Any) -> None:
    task = tasks.add_parser(
        "extract",
        help="summarise texts by some of their sentences",
        description="Prints documents as JSON lines with the `summary` that a model fine-tuned on "
        "the task extraction chooses, and the numbers of its `sentences`, from 0.",
        epilog="examples:\n  bert-jax predict extract --model=runs/extracts/best articles.txt\n"
        "  bert-jax predict extract --model=runs/extracts/best articles.jsonl --num-sentences=2",
    )
    task.set_defaults(run=_extract)
    _add_model(task)
    inputs.add(task, inputs.SINGLE)
    _add_max_seq_length(task, "tokens to which longer documents are cut", "128")
    task.add_argument("--num-sentences", type=int, metavar="N", help="most sentences of a summary")


def _extract(arguments: argparse.Namespace) -> None:
    lines, bert = inputs.read(arguments), _load(arguments)

    def extract(texts: Iterator[str]) -> Iterator["Extract"]:
        count = arguments.num_sentences
        return bert.extract(texts, arguments.max_seq_length, num_sentences=count)

    _say_results(
        lines, extract, lambda found: {"summary": found.text, "sentences": found.sentences}
    )


def _add_generate(tasks: Any) -> None:
    task = tasks.add_parser(
        "generate",
        help="write a text for each text",
        description="Prints texts as JSON lines with the `generated` text that a fine-tuned "
        "decoder writes for each, such as its summary or translation. Options of the search are "
        "those of fine-tuning, unless they are given.",
        epilog="examples:\n  bert-jax predict generate --model=runs/summaries/best articles.txt\n"
        '  bert-jax predict generate --model=runs/en-de/best "A man sleeps." --beams=5',
    )
    task.set_defaults(run=_generate)
    _add_model(task)
    inputs.add(task, inputs.SINGLE)
    _add_max_seq_length(task, "tokens to which longer texts are cut", "the model's positions")
    task.add_argument("--beams", type=int, metavar="N", help="beams of the search; 1 is greedy")
    task.add_argument("--max-length", type=int, metavar="N", help="most tokens of a text")
    task.add_argument("--min-length", type=int, metavar="N", help="fewest tokens of a text")
    task.add_argument(
        "--length-penalty",
        type=float,
        metavar="X",
        help="beams are compared by their log probability / tokens**X",
    )
    task.add_argument(
        "--no-repeat-ngram",
        type=int,
        metavar="N",
        help="write no sequence of N tokens twice; 0 for no limit",
    )


def _generate(arguments: argparse.Namespace) -> None:
    lines, bert = inputs.read(arguments), _load(arguments)
    names = ("beams", "max_length", "min_length", "length_penalty", "no_repeat_ngram")
    search = {name: getattr(arguments, name) for name in names}

    def generate(texts: Iterator[str]) -> Iterator[str]:
        return bert.generate(texts, arguments.max_seq_length, **search)

    _say_results(lines, generate, lambda found: {"generated": found})


def _add_attributions(tasks: Any) -> None:
    task = tasks.add_parser(
        "attributions",
        help="say how much each token contributes to a prediction",
        description="Explains what a fine-tuned classifier, tagger or question answerer predicts. "
        "Prints texts as JSON lines with `attributions`, one for a class, entity or answer: "
        "what each of the `tokens` contributes to its logit by integrated gradients and by "
        "input times gradient, and attention rollout. `completeness_error` is the relative error "
        "of the integral. Computed in fp32.",
        epilog="examples:\n  bert-jax predict attributions --model=runs/sst2/best "
        '"A wonderful film." --page=why.html\n'
        "  bert-jax predict attributions --model=runs/ner/best articles.txt --target=PER",
    )
    task.set_defaults(run=_attributions)
    _add_model(task, compute_dtype=False)
    inputs.add(task, inputs.ANY)
    _add_max_seq_length(task, "tokens to which texts are cut, or of their windows", "as usual")
    task.add_argument(
        "--target",
        metavar="NAME",
        help="class to explain, or type of entities (default: what is predicted)",
    )
    task.add_argument(
        "--steps", type=int, default=50, metavar="N", help="points of the integral (default: 50)"
    )
    task.add_argument(
        "--baseline",
        choices=BASELINES,
        default=BASELINES[0],
        help="where the integral begins: [PAD] or [MASK] instead of each token, or vectors of 0 "
        "(default: pad)",
    )
    task.add_argument(
        "--page",
        type=epath.Path,
        metavar="FILE.html",
        help="write a page there too, and a PNG beside it",
    )


def _attributions(arguments: argparse.Namespace) -> None:
    page = arguments.page
    if page is not None and page.suffix != ".html":
        raise UserError(f"--page={page}: the name must end in .html")
    flags.check_model(arguments.model)

    from bert_jax.inference.fine_tuned import task_in

    task, bert = task_in(epath.Path(arguments.model)), None
    if task is None:  # the head of the model says it
        bert = _load(arguments)
        task = bert.explained_task()
    arguments.given = inputs.of_task(task)
    lines = inputs.read(arguments)
    bert = bert or _load(arguments)

    from bert_jax.report.attributions import MAX_ON_PAGE, draw_picture, write_page

    def attributions(texts: Iterator[Any]) -> Iterator[list["Attribution"]]:
        return bert.attributions(
            texts,
            arguments.target,
            steps=arguments.steps,
            baseline=arguments.baseline,
            max_seq_length=arguments.max_seq_length,
        )

    shown: list[dict[str, Any]] = []
    for line, found in _with_results(lines, attributions):
        fields = [each.to_plain() for each in found]
        say_json(line.merged({"attributions": fields}))
        shown += fields[: MAX_ON_PAGE - len(shown)]
    if page is not None:
        title = f"Attributions of {Path(arguments.model).absolute().name}"
        write_page(page, shown, title=title)
        draw_picture(page.with_suffix(".png"), shown, title=title)
    _report_skipped(lines)


def _add_max_seq_length(task: argparse.ArgumentParser, help: str, otherwise: str) -> None:
    task.add_argument(
        "--max-seq-length",
        type=int,
        metavar="N",
        help=f"{help} (default: as in fine-tuning, or {otherwise} if that is not known)",
    )


def _add_model(task: argparse.ArgumentParser, *, compute_dtype: bool = True) -> None:
    flags.add_model(
        task, "a training run, a Hugging Face or Google model, or the output of convert or export"
    )
    flags.add_step(task, "checkpoint of a run (default: newest)")
    flags.add_weights(task)
    task.set_defaults(compute_dtype=None)
    if compute_dtype:
        task.add_argument(
            "--compute-dtype",
            choices=COMPUTE_DTYPES,
            help="dtype of matrix products (default: that of the run, or float32)",
        )


def _load(arguments: argparse.Namespace) -> "TrainedBert":
    flags.check_model(arguments.model)

    from bert_jax.inference.trained import load

    return load(
        arguments.model,
        arguments.step,
        weights=arguments.weights,
        compute_dtype=arguments.compute_dtype,
    )


def _report_skipped(lines: Lines) -> None:
    if lines.skipped:
        first = printable(lines.first_skipped)
        print(f"bad lines skipped: {lines.skipped}; {first}", file=sys.stderr)


def _say_results(
    lines: Lines,
    stream: Callable[[Iterator[Any]], Iterator[T]],
    fields: Callable[[T], Mapping[str, Any]],
) -> None:
    """Prints each line as JSON with the fields of its result, then what was skipped."""
    for line, result in _with_results(lines, stream):
        say_json(line.merged(fields(result)))
    _report_skipped(lines)


def _with_results(
    lines: Iterable[Line], stream: Callable[[Iterator[Any]], Iterator[T]]
) -> Iterator[tuple[Line, T]]:
    """Each line with the result of its text, from a stream that reads ahead and keeps the order."""
    waiting: deque[Line] = deque()

    def texts() -> Iterator[Any]:
        for line in lines:
            waiting.append(line)
            yield line.text

    for result in stream(texts()):
        yield waiting.popleft(), result


def _layers(text: str) -> int | list[int]:
    layers = [int(layer) for layer in text.split(",")]
    return layers if len(layers) > 1 else layers[0]

"""`bert-jax evaluate`: scores a checkpoint."""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bert_jax.cli import flags, hosts
from bert_jax.errors import UserError
from bert_jax.terminal import say, say_json

if TYPE_CHECKING:
    from bert_jax.api.evaluate import Evaluated


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(
        prog="bert-jax evaluate",
        description="Scores a checkpoint of pretraining on held-out documents, always with the "
        "same examples and masks; or a fine-tuned model, also one of Hugging Face, on examples of "
        "its task. Baselines that ignore the context are printed beside the scores. Or scores "
        "the sentences of a suite, without fine-tuning: how often is the right one of two "
        "sentences more probable?",
        formatter_class=flags.HelpFormatter,
        epilog="--config.task.FIELD=VALUE reads the examples with another field of the task, as in "
        "finetune.\n\nexamples:\n  bert-jax evaluate --workdir=runs/base\n"
        "  bert-jax evaluate --workdir=runs/base --store=law=stores/law --store=news=stores/news\n"
        "  bert-jax evaluate --workdir=runs/sst2 --data=test --json\n"
        "  bert-jax evaluate --workdir=runs/base --suite=blimp:blimp/data --output=blimp-base\n"
        "  bert-jax evaluate --workdir=downloaded-tagger --data=dev.conll "
        "--config.task.tag_column=4",
        allow_abbrev=False,
    )
    flags.add_workdir(
        parser,
        "directory of a training run, or of a model with a head of a task",
    )
    flags.add_step(parser, "checkpoint to score (default: the newest, or the best of fine-tuning)")
    flags.add_weights(parser)
    parser.add_argument(
        "--store",
        action="append",
        metavar="[NAME=]DIR",
        help="token store whose held-out documents to score on (default: that of the training "
        "run); NAME=DIR, given several times, prints a table by name",
    )
    parser.add_argument(
        "--data",
        default="dev",
        metavar="SOURCE",
        help="for a task: train, dev or test of the run, or another file, tfds:NAME:SPLIT "
        "or hf:OWNER/NAME:SPLIT (default: dev)",
    )
    parser.add_argument(
        "--predictions",
        metavar="PATH",
        help="for a task: write the predictions there, and do not read labels; .jsonl and .csv "
        "have probabilities, files with any other suffix the format of the task's benchmark",
    )
    parser.add_argument(
        "--suite",
        metavar="KIND:PATH",
        help="score sentences instead, without fine-tuning, with any model that predicts masked "
        "words: minimal pairs of blimp:FOLDER, zorro:FOLDER or pairs:FILE.tsv (good, bad), or "
        "the sentences of cola:FILE.tsv",
    )
    flags.add_method(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="for a suite: write scores.json, the score of each sentence and a picture there",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    hosts.add_arguments(parser)
    arguments, overrides = parser.parse_known_args(argv)
    if wrong := [flag for flag in overrides if not flag.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    stores = _stores(arguments.store or [])
    if arguments.suite:
        _evaluate_suite(parser, arguments, overrides)
        return
    if arguments.method or arguments.output:
        parser.error("--method and --output are for a --suite")
    if hosts.is_alone(arguments):
        flags.check_run(arguments.workdir)
        for path in stores.values():
            if flags.is_missing(path):
                raise UserError(f"--store={path}: {flags.FILES['data.store']}")
        if arguments.data not in ("train", "dev", "test") and flags.is_missing(arguments.data):
            raise UserError(f"--data={arguments.data}: no such file, and none of train, dev, test")
    hosts.connect(arguments)

    from bert_jax.api.evaluate import evaluate, evaluate_stores
    from bert_jax.parallel.hosts import is_primary
    from bert_jax.report.metrics_file import finite
    from bert_jax.report.units import shown

    if stores and "" not in stores:
        by_name = evaluate_stores(
            arguments.workdir, stores, step=arguments.step, weights=arguments.weights
        )
        if is_primary():
            _print_by_name(by_name, as_json=arguments.json)
        return
    split, step, scores, baselines = evaluate(
        arguments.workdir,
        step=arguments.step,
        weights=arguments.weights,
        store=stores.get(""),
        data=arguments.data,
        predictions=arguments.predictions,
        overrides=overrides,
    )
    if not is_primary():
        return
    if arguments.predictions and not arguments.json:
        say(arguments.predictions)
        return
    if arguments.json:
        found = {split: finite(scores), "baseline": finite(baselines)}
        say_json({"step": step} | found)
        return
    say(f"{'' if step is None else f'step {step}':<20}{'model':>10}{'baseline':>10}")
    for name, value in scores.items():
        baseline = shown(name, baselines[name]) if name in baselines else ""
        say(f"{name:<20}{shown(name, value):>10}{baseline:>10}".rstrip())


def _stores(given: Sequence[str]) -> dict[str, str]:
    """Name -> path of each --store; the name of one without is empty.

    Raises:
      UserError: there are several, and one has no name, or two have the same.
    """
    stores: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not re.fullmatch(r"[\w.-]+", name):
            name, path = "", text
        if name in stores or (len(given) > 1 and not name):
            raise UserError(f"--store={text}: give each of several stores its own name, NAME=DIR")
        stores[name] = path
    return stores


def _print_by_name(found: Mapping[str, "Evaluated"], *, as_json: bool) -> None:
    from bert_jax.report.metrics_file import finite

    step = next(iter(found.values())).step
    if as_json:
        stores = {
            name: {each.split: finite(each.scores), "baseline": finite(each.baselines)}
            for name, each in found.items()
        }
        say_json({"step": step, "stores": stores})
        return
    perplexities = dict.fromkeys(
        name for each in found.values() for name in each.scores if name.endswith("_perplexity")
    )
    for head in (name.removesuffix("_perplexity") for name in perplexities):
        numbers = f"{'unigram':>9}{'perplexity':>12}{'accuracy':>10}{'tokens':>12}"
        say(f"{f'step {step}':<27}{head + ' loss':>10}{numbers}")
        for name, each in found.items():
            loss, accuracy, perplexity = (
                each.scores[f"{head}_{metric}"] for metric in ("loss", "accuracy", "perplexity")
            )
            say(
                f"{name:<27.27}{loss:>10.4f}{each.baselines[f'{head}_loss']:>9.4f}"
                f"{perplexity:>12,.2f}{accuracy:>10.1%}{each.scores['tokens']:>12,}"
            )


def _evaluate_suite(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, overrides: Sequence[str]
) -> None:
    others = ("store", "data", "predictions")
    given = [f"--{name}" for name in others if getattr(arguments, name) != parser.get_default(name)]
    if given or overrides:
        parser.error(f"{(*given, *overrides)[0]} does not go with --suite")
    if hosts.is_alone(arguments):
        flags.check_model(arguments.workdir)

    from bert_jax.data.suites import suite_name

    try:
        name = suite_name(arguments.suite)
    except UserError as error:
        raise UserError(f"--suite={error}") from error
    if hosts.is_alone(arguments) and flags.is_missing(name.path):
        raise UserError(f"--suite={arguments.suite}: no such file or folder")
    hosts.connect(arguments)

    from bert_jax.api.evaluate_suite import evaluate_suite
    from bert_jax.parallel.hosts import is_primary
    from bert_jax.report.suites import table

    scores = evaluate_suite(
        arguments.workdir,
        arguments.suite,
        method=arguments.method,
        step=arguments.step,
        weights=arguments.weights,
        output=arguments.output,
    )
    if not is_primary():
        return
    if arguments.json:
        say_json(scores)
        return
    for line in table(scores):
        say(line)

"""`bert-jax evaluate`: scores a checkpoint."""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
        "--perturb",
        metavar="KIND[,...]",
        help="for a task: score the examples before and after these changes of their texts: typos, "
        "case, punctuation, whitespace, dropped_words, or all of these; names",
    )
    parser.add_argument(
        "--names",
        metavar="FILE",
        help="for --perturb=names: names that are swapped, one in a line, with a blank line "
        "between groups",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of --perturb and its intervals (default: 0)"
    )
    parser.add_argument(
        "--checklist",
        metavar="FILE.jsonl",
        help="for a classifier: run tests of behaviour instead, in CheckList's form: a JSON object "
        "a line, with `test`, `type` (MFT, INV or DIR) and what docs/robustness.md says",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="for a suite, --perturb or --checklist: write the scores there as JSON, and the score "
        "of each sentence or the changed examples, and a picture",
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
    if arguments.checklist:
        _evaluate_checklist(parser, arguments, overrides)
        return
    if arguments.method:
        parser.error("--method is for a --suite")
    if arguments.output and not arguments.perturb:
        parser.error("--output is for a --suite, --perturb or --checklist")
    if not arguments.perturb and (arguments.names or arguments.seed is not None):
        parser.error("--names and --seed are for --perturb")
    if arguments.perturb:
        _refuse(parser, arguments, ("store", "predictions"), "--perturb")
    if hosts.is_alone(arguments):
        flags.check_run(arguments.workdir)
        for path in stores.values():
            if flags.is_missing(path):
                raise UserError(f"--store={path}: {flags.FILES['data.store']}")
        if arguments.data not in ("train", "dev", "test") and flags.is_missing(arguments.data):
            raise UserError(f"--data={arguments.data}: no such file, and none of train, dev, test")
    if arguments.perturb:
        _evaluate_robustness(arguments, overrides)
        return
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


def _refuse(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    names: Sequence[str],
    flag: str,
    overrides: Sequence[str] = (),
) -> None:
    """Reports a flag that does not go with another one."""
    given = [f"--{name}" for name in names if getattr(arguments, name) != parser.get_default(name)]
    if given or overrides:
        parser.error(f"{(*given, *overrides)[0]} does not go with {flag}")


def _evaluate_robustness(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    from bert_jax.tasks.perturbations import PERTURBATIONS, perturbations

    kinds = [
        kind
        for name in arguments.perturb.split(",")
        for kind in (PERTURBATIONS if name == "all" else [name])
    ]
    try:
        perturbations(kinds, arguments.names)
    except UserError as error:
        raise UserError(f"--{error}") from error
    hosts.connect(arguments)

    from bert_jax.api.evaluate_robustness import evaluate_robustness
    from bert_jax.parallel.hosts import is_primary
    from bert_jax.report.robustness import drops_table

    result = evaluate_robustness(
        arguments.workdir,
        arguments.data,
        perturb_by=kinds,
        names=arguments.names,
        seed=arguments.seed or 0,
        step=arguments.step,
        weights=arguments.weights,
        output=arguments.output,
        overrides=overrides,
    )
    if is_primary():
        _print(result, drops_table, as_json=arguments.json)


def _evaluate_checklist(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, overrides: Sequence[str]
) -> None:
    others = ("store", "data", "predictions", "perturb", "names", "seed", "method")
    _refuse(parser, arguments, others, "--checklist", overrides)
    if not hosts.is_alone(arguments):
        parser.error("--checklist runs in one process")
    flags.check_model(arguments.workdir)
    if flags.is_missing(arguments.checklist):
        raise UserError(f"--checklist={arguments.checklist}: no such file")

    from bert_jax.api.evaluate_checklist import evaluate_checklist
    from bert_jax.report.robustness import checklist_table

    result = evaluate_checklist(
        arguments.workdir,
        arguments.checklist,
        step=arguments.step,
        weights=arguments.weights,
        output=arguments.output,
    )
    _print(result, checklist_table, as_json=arguments.json)


def _print(
    result: Mapping[str, Any],
    table: Callable[[Mapping[str, Any]], Iterable[str]],
    *,
    as_json: bool,
) -> None:
    if as_json:
        say_json(result)
        return
    for line in table(result):
        say(line)


def _evaluate_suite(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, overrides: Sequence[str]
) -> None:
    others = ("store", "data", "predictions", "perturb", "names", "seed", "checklist")
    _refuse(parser, arguments, others, "--suite", overrides)
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
    _print(scores, table, as_json=arguments.json)

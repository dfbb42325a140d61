"""`bert-jax evaluate`: scores a checkpoint."""

import argparse
from collections.abc import Sequence

from bert_jax.cli import flags, hosts
from bert_jax.errors import UserError
from bert_jax.terminal import say, say_json


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
        metavar="DIR",
        help="token store whose held-out documents to score on (default: that of the training run)",
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
    flags.add_method(parser, default=None)
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
    if arguments.suite:
        _evaluate_suite(parser, arguments, overrides)
        return
    if arguments.method or arguments.output:
        parser.error("--method and --output are for a --suite")
    if hosts.is_alone(arguments):
        flags.check_run(arguments.workdir)
        if arguments.store and flags.is_missing(arguments.store):
            raise UserError(f"--store={arguments.store}: {flags.FILES['data.store']}")
        if arguments.data not in ("train", "dev", "test") and flags.is_missing(arguments.data):
            raise UserError(f"--data={arguments.data}: no such file, and none of train, dev, test")
    hosts.connect(arguments)

    from bert_jax.api.evaluate import evaluate
    from bert_jax.parallel.hosts import is_primary
    from bert_jax.report.metrics_file import finite
    from bert_jax.report.units import shown

    split, step, scores, baselines = evaluate(
        arguments.workdir,
        step=arguments.step,
        weights=arguments.weights,
        store=arguments.store,
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
        method=arguments.method or "pll",
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

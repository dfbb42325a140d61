"""`bert-jax evaluate`: scores a checkpoint."""

import argparse
import json
from collections.abc import Sequence

from bert_jax.cli import flags, hosts
from bert_jax.errors import UserError


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="bert-jax evaluate",
        description="Scores a checkpoint of pretraining on held-out documents, always with the "
        "same examples and masks, or one of fine-tuning on the examples of a split. Baselines "
        "that ignore the context are printed beside the scores.",
        formatter_class=flags.HelpFormatter,
        epilog="examples:\n  bert-jax evaluate --workdir=runs/base\n"
        "  bert-jax evaluate --workdir=runs/sst2 --data=test --json",
    )
    flags.add_workdir(parser, "directory of the training run")
    flags.add_step(parser, "checkpoint to score (default: the newest, or the best of fine-tuning)")
    parser.add_argument(
        "--store",
        metavar="DIR",
        help="token store whose held-out documents to score on (default: that of the training run)",
    )
    parser.add_argument(
        "--data",
        default="dev",
        metavar="SOURCE",
        help="for fine-tuning: train, dev, test, or another file or tfds:NAME:SPLIT (default: dev)",
    )
    parser.add_argument(
        "--predictions",
        metavar="PATH",
        help="for fine-tuning: write the predictions there, and do not read labels",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    hosts.add_arguments(parser)
    arguments = parser.parse_args(argv)
    if hosts.is_alone(arguments):
        flags.check_run(arguments.workdir)
        if arguments.store and flags.is_missing(arguments.store):
            raise UserError(f"--store={arguments.store}: {flags.FILES['data.store']}")
        if arguments.data not in ("train", "dev", "test") and flags.is_missing(arguments.data):
            raise UserError(f"--data={arguments.data}: no such file, and none of train, dev, test")
    hosts.connect(arguments)

    from bert_jax.api.evaluate import evaluate
    from bert_jax.parallel.hosts import is_primary

    split, step, scores, baselines = evaluate(
        arguments.workdir,
        step=arguments.step,
        store=arguments.store,
        data=arguments.data,
        predictions=arguments.predictions,
    )
    if not is_primary():
        return
    if arguments.json:
        print(json.dumps({"step": step, split: scores, "baseline": baselines}))
        return
    print(f"{f'step {step}':<20}{'model':>10}{'baseline':>10}")
    for name, value in scores.items():
        baseline = f"{baselines[name]:>10.4f}" if name in baselines else ""
        print(f"{name:<20}{value:>10.4f}{baseline}")

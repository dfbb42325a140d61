"""`bert-jax evaluate`: scores a checkpoint."""

from collections.abc import Sequence

from bert_jax.cli import flags, hosts
from bert_jax.errors import UserError
from bert_jax.terminal import say, say_json


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(
        prog="bert-jax evaluate",
        description="Scores a checkpoint of pretraining on held-out documents, always with the "
        "same examples and masks; or a fine-tuned model, also one of Hugging Face, on examples of "
        "its task. Baselines that ignore the context are printed beside the scores.",
        formatter_class=flags.HelpFormatter,
        epilog="--config.task.FIELD=VALUE reads the examples with another field of the task, as in "
        "finetune.\n\nexamples:\n  bert-jax evaluate --workdir=runs/base\n"
        "  bert-jax evaluate --workdir=runs/sst2 --data=test --json\n"
        "  bert-jax evaluate --workdir=downloaded-tagger --data=dev.conll "
        "--config.task.tag_column=4",
        allow_abbrev=False,
    )
    flags.add_workdir(
        parser,
        "directory of a training run, or of a model with a head of a task",
    )
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
        help="for a task: train, dev or test of the run, or another file, tfds:NAME:SPLIT "
        "or hf:OWNER/NAME:SPLIT (default: dev)",
    )
    parser.add_argument(
        "--predictions",
        metavar="PATH",
        help="for a task: write the predictions there, and do not read labels; .jsonl and .csv "
        "have probabilities, files with any other suffix the format of the task's benchmark",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    hosts.add_arguments(parser)
    arguments, overrides = parser.parse_known_args(argv)
    if wrong := [flag for flag in overrides if not flag.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
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

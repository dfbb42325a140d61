"""`bert-jax prune`: prunes heads and layers of a fine-tuned model."""

from collections.abc import Sequence

from bert_jax.cli import flags
from bert_jax.errors import UserError
from bert_jax.terminal import say


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(
        prog="bert-jax prune",
        description="Measures how much a fine-tuned model needs each of its heads and layers, by "
        "the gradient of the loss, and scores it without the least important ones: pruning.json "
        "and pruning.png. With --heads or --layers it also writes the pruned model, to fine-tune "
        "again or to use.",
        formatter_class=flags.HelpFormatter,
        epilog="example:\n  bert-jax prune --model=runs/sst2/best --data=train.tsv --dev=dev.tsv "
        "--heads=0.3 --output=pruned",
    )
    flags.add_model(parser, "a fine-tuned model, of any format that predict reads")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new directory")
    parser.add_argument(
        "--data", required=True, metavar="SOURCE", help="examples to measure importance on"
    )
    parser.add_argument(
        "--dev", required=True, metavar="SOURCE", help="examples to score pruned models on"
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=512,
        metavar="N",
        help="take the first N of --data (default: %(default)s)",
    )
    parser.add_argument(
        "--heads", type=float, default=0.0, metavar="SHARE", help="share of all heads to prune"
    )
    parser.add_argument(
        "--layers", type=int, default=0, metavar="N", help="number of layers to leave out"
    )
    flags.add_step(parser, "checkpoint of a workdir (default: newest)")
    flags.add_weights(parser)
    arguments = parser.parse_args(argv)
    flags.check_model(arguments.model)
    if arguments.examples < 1:
        raise UserError(f"--examples={arguments.examples}: must be positive")
    for name in ("data", "dev"):
        if flags.is_missing(getattr(arguments, name)):
            raise UserError(f"--{name}={getattr(arguments, name)}: no such file")

    from bert_jax.api.prune import prune
    from bert_jax.report.units import shown

    found = prune(**vars(arguments))
    metric = found["metric"]
    for name, points in found["curves"].items():
        scores = (f"{point['share']:.0%} {shown(metric, point['score'])}" for point in points)
        say(f"{metric} without {name}: {', '.join(scores)}")
    if "pruned" in found:
        say(f"pruned: {metric} {shown(metric, found['pruned']['score'])}")
    say(arguments.output)

"""`bert-jax plot`: draws the curves of training runs."""

from collections.abc import Sequence

from etils import epath

from bert_jax.cli import flags
from bert_jax.errors import UserError
from bert_jax.terminal import say


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(
        prog="bert-jax plot",
        description="Draws losses and accuracies of one or more training runs over steps or "
        "tokens; dashed lines are each run's baselines, which ignore the context.",
        formatter_class=flags.HelpFormatter,
        epilog="example:\n  bert-jax plot runs/base runs/another --output=compare.png",
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="directory of a run")
    parser.add_argument(
        "--output", metavar="FILE.png", help="default: curves.png in the first workdir"
    )
    parser.add_argument(
        "--x",
        choices=("steps", "tokens"),
        default="steps",
        help="draw over optimizer steps or over the tokens trained on (default: steps)",
    )
    arguments = parser.parse_args(argv)

    from bert_jax.report.metrics_file import read_metrics

    workdirs = [epath.Path(workdir) for workdir in arguments.workdirs]
    output = arguments.output or workdirs[0] / "curves.png"
    runs = {str(workdir): read_metrics(workdir) for workdir in workdirs}
    for workdir, lines in runs.items():
        if not lines:
            raise UserError(f"{workdir}/metrics.jsonl: no metrics yet; wait for the first ones")

    from bert_jax.report.curves import draw_curves

    draw_curves(runs, output, arguments.x)
    say(output)

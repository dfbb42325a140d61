"""`bert-jax report`: describes training runs in one page."""

from collections.abc import Sequence

from etils import epath

from bert_jax.cli import flags
from bert_jax.terminal import say


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(
        prog="bert-jax report",
        description="Writes one self-contained HTML page about training runs: scores beside their "
        "baselines, curves, rates, config, data, environment, and the masks that every checkpoint "
        "fills. Several runs are side by side.",
        formatter_class=flags.HelpFormatter,
        epilog="examples:\n"
        "  bert-jax report runs/base\n"
        '  bert-jax report runs/a runs/b --output=compare.html --text "Time [MASK]."',
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="directory of a run")
    parser.add_argument(
        "--output", metavar="FILE.html", help="default: report.html in the first workdir"
    )
    parser.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        help="text with a [MASK] to fill, instead of three English ones; may be given again",
    )
    arguments = parser.parse_args(argv)

    from bert_jax.api.write_report import TEXTS, write_report

    output = arguments.output or epath.Path(arguments.workdirs[0]) / "report.html"
    write_report(arguments.workdirs, output, arguments.text or TEXTS)
    say(output)

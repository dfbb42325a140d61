"""`bert-jax export`: writes a trained model as StableHLO."""

from collections.abc import Sequence

from bert_jax.cli import flags
from bert_jax.inference.choices import DEFAULT_PLATFORMS, PLATFORMS, check_platforms
from bert_jax.terminal import say


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(
        prog="bert-jax export",
        description="Writes a model as StableHLO with its parameters, its vocabulary and "
        "load_bert.py, which runs it with only jax and numpy, for any batch size and length.",
        formatter_class=flags.HelpFormatter,
        epilog="example:\n  bert-jax export --model=runs/base --output=exported",
    )
    flags.add_model(parser, "a training run, or any model that convert reads")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new directory")
    flags.add_step(parser, "checkpoint to export (default: newest)")
    flags.add_weights(parser)
    parser.add_argument(
        "--platforms",
        default=",".join(DEFAULT_PLATFORMS),
        metavar="NAMES",
        help=f"platforms to run on, of {', '.join(PLATFORMS)} (default: %(default)s); "
        "none of them needs to be present",
    )
    arguments = parser.parse_args(argv)
    platforms = arguments.platforms.split(",")
    check_platforms(platforms)
    flags.check_model(arguments.model)

    from bert_jax.api.export import export

    export(
        arguments.model,
        arguments.output,
        step=arguments.step,
        weights=arguments.weights,
        platforms=platforms,
    )
    say(arguments.output)

"""`bert-jax export`: writes a trained model as StableHLO or ONNX."""

from collections.abc import Sequence

from bert_jax.cli import flags
from bert_jax.inference.choices import (
    DEFAULT_PLATFORMS,
    EXPORTS,
    PLATFORMS,
    check_export,
    check_platforms,
)
from bert_jax.terminal import say


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(
        prog="bert-jax export",
        description="Writes a model as StableHLO with its parameters, its vocabulary and "
        "load_bert.py, which runs it with only jax and numpy; or as ONNX with its tokenizer. Batch "
        "size and length are free in both.",
        formatter_class=flags.HelpFormatter,
        epilog="examples:\n  bert-jax export --model=runs/base --output=exported\n"
        "  bert-jax export --model=runs/sst2/best --output=sst2-onnx --to=onnx",
    )
    flags.add_model(parser, "a training run, or any model that convert reads")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new directory")
    parser.add_argument(
        "--to",
        choices=EXPORTS,
        default=EXPORTS[0],
        help="onnx needs torch, transformers, onnx and onnxscript (default: %(default)s)",
    )
    flags.add_step(parser, "checkpoint to export (default: newest)")
    flags.add_weights(parser)
    parser.add_argument(
        "--platforms",
        default=",".join(DEFAULT_PLATFORMS),
        metavar="NAMES",
        help=f"platforms to run StableHLO on, of {', '.join(PLATFORMS)} (default: %(default)s); "
        "none of them needs to be present",
    )
    arguments = parser.parse_args(argv)
    platforms = arguments.platforms.split(",")
    check_platforms(platforms)
    check_export(arguments.to)
    flags.check_model(arguments.model)

    from bert_jax.api.export import export

    export(
        arguments.model,
        arguments.output,
        to=arguments.to,
        step=arguments.step,
        weights=arguments.weights,
        platforms=platforms,
    )
    say(arguments.output)

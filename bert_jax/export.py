"""Writes a trained model as StableHLO, to run where bert_jax is not."""

import argparse
from collections.abc import Sequence

import jax
from etils import epath

from bert_jax.inference.exported import PLATFORMS, write_exported
from bert_jax.interop.formats import read


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="bert-jax export",
        description="Writes a model as StableHLO with its parameters, its vocabulary and "
        "load_bert.py, which runs it with nothing but jax and numpy. Batch and length stay open.",
        epilog="example: bert-jax export --model=runs/base --output=exported",
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a training run, or any model to convert"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new directory")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: newest)")
    parser.add_argument(
        "--platforms",
        default=",".join(PLATFORMS[:3]),
        metavar="NAMES",
        help=f"to run on, of {', '.join(PLATFORMS)} (default: %(default)s); "
        "none of them needs to be here",
    )
    arguments = parser.parse_args(argv)
    # The programs name the files that they were made of: not where on this machine these are.
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    model = read(epath.Path(arguments.model), arguments.step)
    write_exported(arguments.output, model, arguments.platforms.split(","))
    print(arguments.output)

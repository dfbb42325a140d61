"""`bert-jax convert`: converts a model between formats."""

import argparse
from collections.abc import Sequence

from etils import epath

from bert_jax.cli import flags
from bert_jax.interop.choices import (
    ARCHITECTURES,
    FORMATS,
    INITIALISED,
    QUANTIZED,
    check_initialise,
    check_quantize,
    check_seed,
)
from bert_jax.terminal import say

_DESCRIPTION = """\
Convert a model between formats. SOURCE is one of

  a bert_jax workdir       from training or conversion, local or gs://
  a Hugging Face directory config.json, model.safetensors or pytorch_model.bin, tokenizer
  a Google checkpoint      bert_config.json, bert_model.ckpt, vocab.txt; needs TensorFlow

Everything in SOURCE that is left out or changed is printed by name.
"""

_EXAMPLES = """\
examples:
  bert-jax convert runs/base exported/base --to=huggingface
  bert-jax convert bert-base-uncased models/base --to=bert_jax
  bert-jax convert uncased_L-2_H-128_A-2 models/tiny --to=bert_jax --uncased
  bert-jax convert minilm models/minilm --to=bert_jax --initialise=masked_lm,next_sentence
  bert-jax convert runs/sst2/best models/sst2-int8 --to=bert_jax --quantize=int8
"""


def main(argv: Sequence[str]) -> None:
    args = _parse(argv)

    from bert_jax.api.convert import convert

    parts = ", ".join(("encoder", *convert(**vars(args))))
    say(f"{args.target}: written for {args.to}, with {parts}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = flags.Parser(
        prog="bert-jax convert",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=flags.HelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE")
    add("target", type=epath.Path, metavar="TARGET", help="local directory, new or empty")
    add("--to", required=True, choices=FORMATS, help="format of TARGET")
    flags.add_step(parser, "checkpoint of a workdir (default: newest)")
    flags.add_weights(parser)
    add(
        "--architecture",
        choices=ARCHITECTURES,
        metavar="CLASS",
        help="write the parts of this Hugging Face class"
        " (default: all parts of SOURCE): " + ", ".join(ARCHITECTURES),
    )
    add(
        "--initialise",
        type=lambda names: names.split(","),
        default=[],
        metavar="PART,...",
        help=f"initialise missing parts at random: {', '.join(INITIALISED)}",
    )
    add("--seed", type=int, default=0, metavar="N", help="for --initialise (default: %(default)s)")
    add(
        "--quantize",
        choices=QUANTIZED,
        help="round the weights of layers and word embeddings, and what they are multiplied by, "
        "to int8; needs --to=bert_jax",
    )
    add(
        "--no-strict",
        dest="strict",
        action="store_false",
        help="leave out tensors that have no place in the model, and name them",
    )
    flags.add_casing(
        parser,
        cased="the vocabulary is cased, if no file says so",
        uncased="the vocabulary is uncased, if no file says so",
    )
    args = parser.parse_args(argv)
    check_initialise(args.initialise)
    check_seed(args.seed)
    check_quantize(args.quantize, args.to)
    flags.check_model(args.source)
    return args

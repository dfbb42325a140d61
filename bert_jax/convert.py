"""`bert-jax convert`: a model from one format into another."""

import argparse
import os
import tempfile
from collections.abc import Sequence

import jax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.interop import formats
from bert_jax.interop.google_tf import write_google
from bert_jax.interop.huggingface import ARCHITECTURES, write_huggingface
from bert_jax.interop.initial import without_parts
from bert_jax.interop.portable import Portable
from bert_jax.interop.tensors import Report
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.heads import parts_of
from bert_jax.storage import is_remote
from bert_jax.train.build import build_model

_DESCRIPTION = """\
Convert a model between formats. SOURCE is one of

  a workdir of bert_jax         of a training run, or a converted one; gs:// is read as well
  a directory of Hugging Face   config.json, model.safetensors or pytorch_model.bin, tokenizer
  a checkpoint of Google        bert_config.json, bert_model.ckpt, vocab.txt; needs bert-jax[tf]

What is in SOURCE and does not come along, or is not as it was, is printed by name.
"""

_EXAMPLES = """\
examples:
  bert-jax convert runs/base exported/base --to=huggingface
  bert-jax convert bert-base-uncased models/base --to=bert_jax
  bert-jax convert uncased_L-2_H-128_A-2 models/tiny --to=bert_jax --uncased
  bert-jax convert minilm models/minilm --to=bert_jax --initialise=masked_lm,next_sentence
"""
WRITERS = {
    "huggingface": write_huggingface,
    "google": write_google,
    "bert_jax": lambda path, model, _: write_workdir(path, model),
}
INITIALISED = ("pooler", "masked_lm", "next_sentence", "answer_span")


def main(argv: Sequence[str]) -> None:
    args = _parse(argv)
    _check_unused(args.target)
    model = formats.read(
        args.source, args.step, lowercase=args.lowercase, strict=args.strict, report=print
    )
    model = _with_parts(model, args.architecture, args.initialise, args.seed, print)
    _write(args.target, model, args.to, print)
    parts = ", ".join(("encoder", *parts_of(model.params)))
    print(f"{args.target}: written for {args.to}, with {parts}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bert-jax convert",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE")
    add("target", type=epath.Path, metavar="TARGET", help="local directory, new or empty")
    add("--to", required=True, choices=WRITERS, help="its format")
    add("--step", type=int, metavar="N", help="which checkpoint of a workdir (default: newest)")
    add(
        "--architecture",
        choices=ARCHITECTURES,
        metavar="CLASS",
        help="the parts to write are those of this class of Hugging Face"
        " (default: all that are there): " + ", ".join(ARCHITECTURES),
    )
    add(
        "--initialise",
        type=lambda names: names.split(","),
        default=[],
        metavar="PART,...",
        help=f"start parts that are missing at random: {', '.join(INITIALISED)}",
    )
    add("--seed", type=int, default=0, metavar="N", help="of --initialise (default: %(default)s)")
    add(
        "--no-strict",
        dest="strict",
        action="store_false",
        help="leave out tensors that have no place in the model, and name them",
    )
    casing = parser.add_mutually_exclusive_group()
    casing.add_argument(
        "--cased",
        dest="lowercase",
        action="store_false",
        default=None,
        help="the vocabulary is cased, where no file says it",
    )
    casing.add_argument(
        "--uncased",
        dest="lowercase",
        action="store_true",
        default=None,
        help="the vocabulary is uncased, where no file says it",
    )
    args = parser.parse_args(argv)
    for part in args.initialise:
        if part not in INITIALISED:
            raise UserError(f"--initialise={part}: use one of {', '.join(INITIALISED)}")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed={args.seed} must be from 0 to 2**32 - 1")
    return args


def _check_unused(target: epath.Path) -> None:
    if is_remote(target):
        raise UserError(f"{target}: TARGET must be on a local disk; copy it from there")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not empty; choose another TARGET")


def _with_parts(
    model: Portable,
    architecture: str | None,
    initialise: Sequence[str],
    seed: int,
    report: Report,
) -> Portable:
    """The model with the parts of an architecture (None: those that it has), some of them new."""
    found = parts_of(model.params)
    if there := [part for part in initialise if part in found]:
        raise UserError(f"--initialise={there[0]}: SOURCE has it already")
    wanted = ARCHITECTURES[architecture] if architecture else (*found, *initialise)
    if missing := [part for part in wanted if part not in (*found, *initialise)]:
        names = ",".join(missing)
        new = f"--initialise={names}" if set(missing) <= set(INITIALISED) else "fine-tuning"
        raise UserError(f"SOURCE has no {names}, which {architecture} has: {new} makes it")
    if useless := [part for part in initialise if part not in wanted]:
        raise UserError(f"--initialise={useless[0]}: {architecture} has none")
    if "next_sentence" in wanted and "pooler" not in wanted:
        raise UserError("next_sentence reads the pooler: add it to --initialise")
    unwanted = [part for part in found if part not in wanted]
    for part in unwanted:
        report(f"left out: {part}, which {architecture} has not")
    params = without_parts(model.params, unwanted)
    if initialise:
        init = jax.jit(build_model(model.config, None, initialise).init)
        fresh = jax.device_get(init(jax.random.key(seed)))
        params = unflatten_dict(flatten_dict(fresh) | flatten_dict(params))
        report(f"initialised: {', '.join(initialise)} (random, seed {seed})")
    labels = model.labels if any("classifier" in part for part in wanted) else ()
    return model._replace(params=params, labels=labels)


def _write(target: epath.Path, model: Portable, to: str, report: Report) -> None:
    """Writes under another name, and renames what is whole."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        unfinished = epath.Path(scratch) / target.name
        unfinished.mkdir()
        WRITERS[to](unfinished, model, report)
        os.replace(unfinished, target)

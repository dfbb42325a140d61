"""Converts a model from one format to another."""

import os
import tempfile
from collections.abc import Sequence

import jax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.interop import formats
from bert_jax.interop.choices import (
    ARCHITECTURES,
    INITIALISED,
    check_architecture,
    check_format,
    check_initialise,
    check_quantize,
    check_seed,
)
from bert_jax.interop.encoder_decoder import write_encoder_decoder
from bert_jax.interop.google_tf import write_google
from bert_jax.interop.huggingface import write_huggingface
from bert_jax.interop.initial import without_parts
from bert_jax.interop.portable import Portable, report_left_out
from bert_jax.interop.tensors import Report
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.generator import GENERATOR
from bert_jax.model.heads import CROSS_ATTENTION, HEADS, PRETRAINING, WRITING, parts_of
from bert_jax.model.int8 import in_int8, is_int8
from bert_jax.model.model import build_model
from bert_jax.storage import errors_name, is_remote
from bert_jax.terminal import say
from bert_jax.train.weights import TRAINED


def _write_huggingface(path: epath.Path, model: Portable, report: Report) -> None:
    write = write_encoder_decoder if CROSS_ATTENTION in model.params else write_huggingface
    write(path, model, report)


WRITERS = {
    "huggingface": _write_huggingface,
    "google": write_google,
    "bert_jax": lambda path, model, _: write_workdir(path, model),
}


def convert(
    source: epath.PathLike,
    target: epath.PathLike,
    *,
    to: str,
    step: int | None = None,
    weights: str = TRAINED,
    architecture: str | None = None,
    initialise: Sequence[str] = (),
    seed: int = 0,
    quantize: str | None = None,
    strict: bool = True,
    lowercase: bool | None = None,
    report: Report = say,
) -> tuple[str, ...]:
    """Writes a model in another format.

    Args:
      source: workdir of bert_jax, local or gs://; Hugging Face directory; Google checkpoint.
      target: local directory, new or empty; appears when it is complete. A generator that was
        trained beside the model is written into its folder `generator`.
      to: one of `FORMATS`.
      step: checkpoint of a workdir; None for the newest.
      weights: which of a workdir, "trained", "ema" or "average:N"; see `bert_jax.train.weights`.
      architecture: one of `ARCHITECTURES`, whose parts to write; None for all parts of the source.
      initialise: missing parts, of `INITIALISED`, to start at random.
      seed: seed of `initialise`, 32 bits.
      quantize: "int8" rounds the layers and word embeddings; see `bert_jax.model.int8`.
      strict: refuse tensors that have no place in the model; else they are left out and reported.
      lowercase: whether the vocabulary is uncased, if no file says so.
      report: called with a line on each thing, by name, that is left out or changed.

    Returns:
      The parts written besides the encoder.

    Raises:
      UserError: the source cannot be read, lacks a requested part or cannot be written in this
        format, or `target` is in use.
    """
    check_format(to)
    check_architecture(architecture)
    check_initialise(initialise)
    check_seed(seed)
    check_quantize(quantize, to)
    target = epath.Path(target)
    _check_unused(target)
    model = formats.read(
        source, step, weights=weights, lowercase=lowercase, strict=strict, report=report
    )
    model = _with_parts(model, architecture, initialise, seed, report)
    if to != "bert_jax":
        report_left_out(model, report)
    if quantize and not is_int8(model.params):
        model = model._replace(params=in_int8(model.params))
    elif to != "bert_jax" and is_int8(model.params):
        report("written in float32: the weights in int8, as they were rounded")
    if model.generator and to == "google":
        report("left out: the generator")
        model = model._replace(generator=None)
    if model.generator:
        report(f"the generator is a model of its own, in {target / GENERATOR}")
    _write(target, model, to, report)
    return parts_of(model.params)


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
    """The model with the parts of an architecture (None: its own) and those to initialise."""
    found = parts_of(model.params)
    if there := [part for part in initialise if part in found]:
        raise UserError(f"--initialise={there[0]}: SOURCE has it already")
    wanted = ARCHITECTURES[architecture] if architecture else (*found, *initialise)
    if missing := [part for part in wanted if part not in (*found, *initialise)]:
        names = ",".join(missing)
        new = f"--initialise={names}" if set(missing) <= set(INITIALISED) else "fine-tuning"
        raise UserError(f"SOURCE has no {names}, which {architecture} has: create it with {new}")
    if useless := [part for part in initialise if part not in wanted]:
        raise UserError(f"--initialise={useless[0]}: {architecture} has none")
    for part in wanted:
        if part in HEADS and HEADS[part].pooled and "pooler" not in wanted:
            raise UserError(f"{part} reads the pooler: add it to --initialise")
    unwanted = [part for part in found if part not in wanted]
    for part in unwanted:
        report(f"left out: {part}, which {architecture} does not have")
    params = without_parts(model.params, unwanted)
    if initialise:
        init = jax.jit(build_model(model.architecture, model.numerics, parts=initialise).init)
        fresh = jax.device_get(init(jax.random.key(seed)))
        params = unflatten_dict(flatten_dict(fresh) | flatten_dict(params))
        report(f"initialised: {', '.join(initialise)} (random, seed {seed})")
    has_labels = any(part in wanted and head.has_labels for part, head in HEADS.items())
    labels = model.labels if has_labels else ()
    of_tasks = [part for part in (*HEADS, *WRITING) if part not in PRETRAINING]
    has_task = any(part in wanted for part in of_tasks)
    return model._replace(
        params=params,
        labels=labels,
        task=model.task if has_task else None,
        problem_type=model.problem_type if "sequence_classifier" in params else None,
    )


def _write(target: epath.Path, model: Portable, to: str, report: Report) -> None:
    """Writes into a temporary directory, and renames it when it is complete."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        unfinished = epath.Path(scratch) / target.name
        with errors_name(target, instead_of=unfinished):
            unfinished.mkdir()
            WRITERS[to](unfinished, model, report)
            if model.generator:
                (unfinished / GENERATOR).mkdir()
                WRITERS[to](unfinished / GENERATOR, model.generator, report)
            os.replace(unfinished, target)

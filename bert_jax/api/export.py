"""Exports a trained model to run without bert_jax: as StableHLO, or as ONNX."""

from collections.abc import Sequence

import jax
from etils import epath

from bert_jax.errors import UserError
from bert_jax.inference import onnx
from bert_jax.inference.choices import DEFAULT_PLATFORMS, check_export
from bert_jax.inference.exported import write_exported
from bert_jax.interop.formats import read
from bert_jax.interop.tensors import Report
from bert_jax.model.heads import CROSS_ATTENTION
from bert_jax.storage import whole_folder
from bert_jax.terminal import say
from bert_jax.train.weights import TRAINED

SOURCE_FILES = "jax_hlo_source_file_canonicalization_regex"


def export(
    model: epath.PathLike,
    output: epath.PathLike,
    *,
    to: str = "stablehlo",
    step: int | None = None,
    weights: str = TRAINED,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    report: Report = say,
) -> None:
    """Writes a model with its vocabulary, for other programs to run.

    Args:
      model: workdir of a training run, or any model that `convert` reads.
      output: new directory, local or gs://.
      to: "stablehlo", the model's functions, its parameters and a loader for them; or "onnx",
        `model.onnx` in fp32, of a model whose blocks are those of a class of transformers.
      step: checkpoint of a workdir; None for the newest.
      weights: which of a workdir, "trained", "ema" or "average:N"; see `bert_jax.train.weights`.
      platforms: those to lower StableHLO for, of `PLATFORMS`; none of them needs to be present.
      report: called with a line on how far the results of ONNX Runtime are from ours, and on what
        is left out.

    Raises:
      UserError: the model cannot be read or exported, `output` is in use, a platform is unknown, or
        a library is not installed.
    """
    check_export(to)
    found = read(model, step, weights=weights)
    if CROSS_ATTENTION in found.params:
        raise UserError(
            f"{model} writes texts by its {CROSS_ATTENTION}, which exports do not hold: use "
            "`bert-jax predict generate`, or `bert-jax convert --to=huggingface`"
        )
    if to == "onnx":
        with whole_folder(output, last=onnx.FILE) as directory:
            onnx.write_onnx(directory, found, report)
        return
    before = getattr(jax.config, SOURCE_FILES)
    # The programs name their source files; drop the directories, which are those of this machine.
    jax.config.update(SOURCE_FILES, ".*/")
    try:
        write_exported(output, found, platforms)
    finally:
        jax.config.update(SOURCE_FILES, before)

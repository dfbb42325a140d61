"""Exports a trained model as StableHLO, to run without bert_jax."""

from collections.abc import Sequence

import jax
from etils import epath

from bert_jax.inference.choices import DEFAULT_PLATFORMS
from bert_jax.inference.exported import write_exported
from bert_jax.interop.formats import read
from bert_jax.train.weights import TRAINED

SOURCE_FILES = "jax_hlo_source_file_canonicalization_regex"


def export(
    model: epath.PathLike,
    output: epath.PathLike,
    *,
    step: int | None = None,
    weights: str = TRAINED,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
) -> None:
    """Writes a model's functions, parameters and vocabulary, and a loader for them.

    Args:
      model: workdir of a training run, or any model that `convert` reads.
      output: new directory, local or gs://.
      step: checkpoint of a workdir; None for the newest.
      weights: which of a workdir, "trained", "ema" or "average:N"; see `bert_jax.train.weights`.
      platforms: platforms to lower for, of `PLATFORMS`; none of them needs to be present.

    Raises:
      UserError: the model cannot be read, `output` is in use, or a platform is unknown.
    """
    before = getattr(jax.config, SOURCE_FILES)
    # The programs name their source files; drop the directories, which are those of this machine.
    jax.config.update(SOURCE_FILES, ".*/")
    try:
        write_exported(output, read(model, step, weights=weights), platforms)
    finally:
        jax.config.update(SOURCE_FILES, before)

"""Options of using or exporting a model.

Imports nothing heavy, so that options are checked before anything is loaded.
"""

from collections.abc import Iterable

from bert_jax.errors import UserError

POOLINGS = ("mean", "max", "cls", "pooled", "tokens")
COMPUTE_DTYPES = ("float32", "bfloat16")
METHODS = ("pll", "within-word", "mntp", "causal")  # of scoring texts
PLATFORMS = ("cpu", "tpu", "cuda", "rocm")
DEFAULT_PLATFORMS = ("cpu", "tpu", "cuda")


def check_platforms(names: Iterable[str]) -> None:
    """Raises UserError if a model cannot be exported for one of these."""
    if unknown := [name for name in names if name not in PLATFORMS]:
        raise UserError(f"no platform {unknown[0]!r} to export for; use {', '.join(PLATFORMS)}")

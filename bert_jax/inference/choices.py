"""Options of using or exporting a model.

Imports nothing heavy, so that options are checked before anything is loaded.
"""

from collections.abc import Iterable
from importlib.util import find_spec

from bert_jax.errors import UserError

POOLINGS = ("mean", "max", "cls", "pooled", "tokens")
COMPUTE_DTYPES = ("float32", "bfloat16")
METHODS = ("pll", "within-word", "mntp", "causal")  # of scoring texts
EXPORTS = ("stablehlo", "onnx")
ONNX_LIBRARIES = ("torch", "transformers", "onnx", "onnxscript")
BASELINES = ("pad", "mask", "zero")  # of attributions
PLATFORMS = ("cpu", "tpu", "cuda", "rocm")
DEFAULT_PLATFORMS = ("cpu", "tpu", "cuda")


def check_platforms(names: Iterable[str]) -> None:
    """Raises UserError if a model cannot be exported for one of these."""
    if unknown := [name for name in names if name not in PLATFORMS]:
        raise UserError(f"no platform {unknown[0]!r} to export for; use {', '.join(PLATFORMS)}")


def check_export(to: str) -> None:
    """Raises UserError if there is no such form of exports, or a library that writes it lacks."""
    if to not in EXPORTS:
        raise UserError(f"--to={to}: use {' or '.join(EXPORTS)}")
    if to == "onnx" and (missing := [name for name in ONNX_LIBRARIES if not find_spec(name)]):
        raise UserError(f"--to=onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}")

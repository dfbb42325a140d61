"""Pretraining of BERT on TPUs with JAX.

The verbs of the command line, except `predict` and `plot`, are functions here: `prepare`,
`pretrain`, `finetune`, `evaluate` with `evaluate_suite`, `evaluate_robustness` and
`evaluate_checklist`, `sweep`, `convert`, `export`, `prune`, `plan`, `inspect`, `write_report` and
`publish`; see `bert_jax.api`. `bert_jax.load(path)` loads a trained model; see
`bert_jax.inference.trained`.
"""

import importlib
import logging
from typing import Any

__version__ = "0.1.0"
_VERBS = (
    "prepare",
    "pretrain",
    "finetune",
    "evaluate",
    "evaluate_suite",
    "evaluate_robustness",
    "evaluate_checklist",
    "sweep",
    "convert",
    "export",
    "prune",
    "plan",
    "inspect",
    "write_report",
    "publish",
)
_HOMES = {verb: f"bert_jax.api.{verb}" for verb in _VERBS} | {"load": "bert_jax.inference.trained"}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Imports a function when it is first used, so that `import bert_jax` needs no jax."""
    if name in _HOMES:
        # Else absl, which Orbax uses, would do this, with "WARNING:bert_jax..." before warnings.
        logging.basicConfig(format="%(message)s")
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

"""Pretraining of BERT on TPUs with JAX.

`bert_jax.load(path)` gives a trained model to use; see `bert_jax.inference.trained`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports what needs jax when it is asked for, so that `bert-jax prepare` starts without."""
    if name == "load":
        return importlib.import_module("bert_jax.inference.trained").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

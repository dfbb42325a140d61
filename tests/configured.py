"""Configurations of tests: a recipe of this repository with some fields changed."""

from pathlib import Path
from typing import Any

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config

CONFIGS = Path(__file__).parents[1] / "configs"


def configured(recipe: str = "bert.py:tiny", **fields: Any) -> PretrainConfig:
    """The recipe with fields overridden as on the command line: {"data.batch_size": 8}."""
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return load_config(PretrainConfig, [f"--config={CONFIGS / recipe}", *overrides])

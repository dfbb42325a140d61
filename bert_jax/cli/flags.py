"""Flags that several verbs share, each verb with its own help text."""

import argparse
from pathlib import Path

from bert_jax.errors import UserError


def add_config(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds --config. Overrides like --config.steps=9 are parsed by `load_config`."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help=help)


def check_recipe(recipe: str) -> None:
    """Raises UserError if the file of FILE.py[:ARG] does not exist, before anything is loaded."""
    if not Path(recipe.partition(":")[0]).is_file():
        raise UserError(f"--config={recipe}: no such file; recipes are in configs/")


def add_workdir(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds --workdir, the directory of a run."""
    parser.add_argument("--workdir", required=True, metavar="DIR", help=help)


def add_model(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds --model, the directory of a trained model."""
    parser.add_argument("--model", required=True, metavar="DIR", help=help)


def add_step(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds --step, a checkpoint of a workdir."""
    parser.add_argument("--step", type=int, metavar="N", help=help)


def add_casing(parser: argparse.ArgumentParser, *, cased: str, uncased: str) -> None:
    """Adds --cased or --uncased, which set `lowercase` to False or True; None without either."""
    casing = parser.add_mutually_exclusive_group()
    for flag, action, help in (
        ("--cased", "store_false", cased),
        ("--uncased", "store_true", uncased),
    ):
        casing.add_argument(flag, dest="lowercase", action=action, default=None, help=help)

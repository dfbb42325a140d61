"""What a command line says about a config: the recipe, its argument, and overrides of fields.

Nothing here loads jax, so that mistakes are reported at once.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import bert_jax
from bert_jax.errors import UserError


class ConfigArguments(NamedTuple):
    """`--config=RECIPE[:ARGUMENT]` and `--config.FIELD=VALUE`.

    Attributes:
      given: RECIPE[:ARGUMENT], for messages.
      recipe: the file of the recipe.
      argument: what is given to its `get_config`; None for nothing.
      overrides: each as it was given.
    """

    given: str
    recipe: Path
    argument: str | None
    overrides: tuple[str, ...]


def parse(arguments: Sequence[str]) -> ConfigArguments:
    """Reads the command-line arguments about a config.

    Raises:
      UserError: there is no such recipe, or an argument is not about the config.
    """
    given, rest = "", list(arguments)
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            following = arguments[index + 1 : index + 2]
            given = value if equals else "".join(following)
            rest = [*arguments[:index], *arguments[index + (1 if equals else 2) :]]
            break
    if not given:
        raise UserError(f"--config is missing: {_choices()}")
    for flag in rest:
        if not flag.startswith("-"):
            raise UserError(f"unexpected argument {flag!r}; see --help")
        if not flag.startswith("--config."):
            raise UserError(
                f"unknown flag {flag.partition('=')[0]}: overrides look like --config.steps=1000"
            )
    name, colon, argument = given.partition(":")
    return ConfigArguments(given, find_recipe(name), argument if colon else None, tuple(rest))


def recipes_folder() -> Path:
    """Where the recipes of this package are: in it, or beside it in the repository."""
    package = Path(bert_jax.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def recipes() -> dict[str, Path]:
    """The files of the recipes that come with this package, by name."""
    return {file.stem: file for file in sorted(recipes_folder().glob("*.py"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path that ends in .py, or the name of one of this package.

    Raises:
      UserError: no such recipe.
    """
    file, known = Path(name), recipes()
    if file.suffix != ".py":
        if name in known:
            return known[name]
        close = difflib.get_close_matches(file.name, known, n=1)
        hint = f"did you mean --config={close[0]}? " if close else ""
        raise UserError(f"--config={name}: no such recipe; {hint}{_choices()}")
    if not file.is_file():
        hint = f"did you mean --config={file.stem}? " if file.stem in known else ""
        raise UserError(f"--config={name}: no such file; {hint}{_choices()}")
    return file


def _choices() -> str:
    return f"recipes are {', '.join(recipes())}, or a file of your own, FILE.py"

"""Flags that several verbs share, each verb with its own help text, and checks of their values.

The checks say at once what would otherwise be found after jax and other large libraries are loaded.
Files in object storage, and those of a run on several hosts, are left to the run.
"""

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from etils import epath

from bert_jax.config.arguments import parse
from bert_jax.errors import UserError
from bert_jax.inference.choices import METHODS
from bert_jax.interop.choices import no_model
from bert_jax.storage import UNFINISHED, is_remote, read_json
from bert_jax.terminal import be_quiet, be_verbose, printable
from bert_jax.train.weights import MEANING, TRAINED, parse_weights

# Fields that name a file or folder, and what to say if it does not exist.
FILES = {
    "data.store": "no token store there; make one with `bert-jax prepare`",
    "task.train": "no such file",
    "task.dev": "no such file",
    "task.test": "no such file",
}


class HelpFormatter(argparse.HelpFormatter):
    """Wraps lines at the width of the terminal; keeps indented ones, which are to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.startswith(" ") else textwrap.fill(line, width, initial_indent=indent)
            for line in text.splitlines()
        )


def table(rows: Sequence[tuple[str, str, str]], width: int = 78) -> str:
    """Indented lines of a help text for names, their meanings and what they need, if anything."""
    indent = 20
    lines = []
    for name, meaning, needs in rows:
        text = f"{meaning}; needs {needs}" if needs else meaning
        wrapped = textwrap.wrap(text, width - indent)
        if len(name) > indent - 4:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name:<{indent - 2}}{wrapped.pop(0)}")
        lines += [" " * indent + line for line in wrapped]
    return "\n".join(lines)


FIELDS_HELP = (
    "All fields, with defaults and meanings: docs/config.md, or python -m "
    "bert_jax.config.reference, which prints it. "
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, whatever the arguments hold.

    Every verb takes --quiet and --verbose, which act when they are parsed.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        output = self.add_mutually_exclusive_group()
        for name, act, help in (
            ("--quiet", be_quiet, "print only results, warnings and errors"),
            ("--verbose", be_verbose, "also show what libraries log, such as absl and JAX"),
        ):
            output.add_argument(
                name, action=_Act, nargs=0, const=act, default=argparse.SUPPRESS, help=help
            )

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _Act(argparse.Action):
    """Calls its function, and keeps nothing among the arguments."""

    def __call__(self, *_: object) -> None:
        self.const()


def add_config(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds --config. Overrides like --config.steps=9 are parsed by `load_config`."""
    parser.add_argument("--config", required=True, metavar="RECIPE[:ARG]", help=help)


def config_arguments(recipe: str, overrides: Sequence[str]) -> list[str]:
    """What `load_config` takes.

    Raises:
      UserError: there is no such recipe, or an override is none.
    """
    arguments = [f"--config={recipe}", *overrides]
    parse(arguments)
    return arguments


def check_files(overrides: Sequence[str]) -> None:
    """Raises UserError if an override names a file that does not exist."""
    for override in overrides:
        field, _, value = override.removeprefix("--config.").partition("=")
        if field == "init_from":
            check_model(value)
        elif field in FILES and is_missing(value):
            raise UserError(f"config.{field}={value}: {FILES[field]}")


def is_missing(path: str) -> bool:
    """Whether a path is on a local disk and does not exist; not for tfds:NAME and patterns.

    It exists if there is an unfinished store, or Google's checkpoint of which it is the prefix.
    """
    if not path or any(character in path for character in ":*?["):
        return False
    suffixes = ("", UNFINISHED, ".index")
    return not any(epath.Path(f"{path}{suffix}").expanduser().exists() for suffix in suffixes)


def check_run(workdir: str) -> None:
    """Raises UserError if a local directory holds no run."""
    if not is_remote(workdir):
        read_json(epath.Path(workdir) / "config.json")


def check_model(path: str) -> None:
    """Raises UserError if there is nothing at the path of a model."""
    if is_missing(path):
        raise no_model(path)


def add_workdir(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds --workdir, the directory of a run."""
    parser.add_argument("--workdir", required=True, metavar="DIR", help=help)


def add_model(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds --model, the directory of a trained model."""
    parser.add_argument("--model", required=True, metavar="DIR", help=help)


def add_step(parser: argparse.ArgumentParser, help: str) -> None:
    """Adds --step, a checkpoint of a workdir."""
    parser.add_argument("--step", type=int, metavar="N", help=help)


def add_method(parser: argparse.ArgumentParser) -> None:
    """Adds --method, how texts are scored."""
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="what is masked to score a token: pll, the token alone (Salazar et al. 2020), or "
        "within-word, also the later pieces of its word (Kauf and Ivanova 2023); mntp is pll for a "
        "model that predicts next tokens; causal, nothing: each token from those before it "
        "(default: mntp for runs of the hybrid, causal if all their examples are, else pll)",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds --weights, which of a workdir's weights to read."""

    def checked(text: str) -> str:
        parse_weights(text, "--weights")
        return text

    parser.add_argument(
        "--weights",
        type=checked,
        default=TRAINED,
        metavar="NAME",
        help=f"which of a workdir. {MEANING} (default: {TRAINED})",
    )


def add_casing(parser: argparse.ArgumentParser, *, cased: str, uncased: str) -> None:
    """Adds --cased or --uncased, which set `lowercase` to False or True; None without either.

    --no-lowercase and --lowercase are other names of them.
    """
    casing = parser.add_mutually_exclusive_group()
    for names, action, help in (
        (("--cased", "--no-lowercase"), "store_false", cased),
        (("--uncased", "--lowercase"), "store_true", uncased),
    ):
        casing.add_argument(*names, dest="lowercase", action=action, default=None, help=help)

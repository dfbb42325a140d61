"""Runs the benchmarks of docs/benchmarks.md again and prints their results as a page.

    python benchmarks/page.py [--only WORDS] STORE=stores/mine MODEL=all-MiniLM-L6-v2 ... > page.md

The commands are those of the page, one after the other; NAME=VALUE replaces the words in capitals
in them. A command for which one is missing is left out, and the page says so. With --only, only
sections whose titles have these words are run.
"""

import argparse
import datetime
import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"\b[A-Z]{2}[A-Z_]+\b")


def commands() -> Iterator[tuple[str, str]]:
    """The title of each section, and its commands."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL):
            for command in block.replace("\\\n", " ").splitlines():
                yield section.partition("\n")[0], " ".join(command.split())


def filled(command: str, values: Mapping[str, str]) -> str:
    """A command with values for its names; an optional one, in brackets, may have none."""
    command = re.sub(r"\[([A-Z_]+)\]", lambda m: m[1] if m[1] in values else "", command)
    return NAME.sub(lambda m: shlex.quote(values[m[0]]) if m[0] in values else m[0], command)


def machine() -> str:
    """Processor, versions and date."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "numpy")]
    parts = [
        f"{len(models) or '?'} x {models[0] if models else platform.processor()}",
        f"Python {platform.python_version()}",
        *versions,
        datetime.date.today().isoformat(),
    ]
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words of the titles of sections")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE")
    arguments = parser.parse_args()
    values = dict(value.split("=", 1) for value in arguments.values)
    print(f"# Benchmarks\n\n{machine()}", flush=True)
    for title, command in commands():
        if arguments.only.lower() not in title.lower():
            continue
        command = filled(command, values)
        print(f"\n## {title}\n\n```bash\n{command}\n```\n", flush=True)
        if missing := NAME.findall(command):
            print(f"Not run: give {', '.join(f'{name}=VALUE' for name in missing)}.", flush=True)
            continue
        words = [sys.executable, *shlex.split(command)[1:]]
        start = time.monotonic()
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        print(f"```\n{done.stdout.rstrip()}\n```", flush=True)
        if done.returncode:
            print(f"\nFailed with {done.returncode}: {done.stderr.rstrip()[-2000:]}", flush=True)
        print(f"\n{time.monotonic() - start:,.0f} s", flush=True)


if __name__ == "__main__":
    main()

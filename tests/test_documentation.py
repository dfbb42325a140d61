"""Every documented command is one that the program takes; advice names flags that the verb has."""

import argparse
import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_architecture import IMPORTS

from bert_jax.__main__ import VERBS, main
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = {"pretrain": PretrainConfig, "plan": PretrainConfig, "finetune": FinetuneConfig}
TRAINING_SCRIPTS = ("quickstart.sh", "babysit.sh", "run.sh", "xpk.sh")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in lines of a shell."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;<>"):
                yield words
                words = []
            elif words or not re.fullmatch(r"\w+=.*", word):  # not NAME=VALUE before a command
                words.append(word)


def documented() -> Iterator[tuple[str, list[str]]]:
    """Where a command is written, and its words."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        inline = re.findall(r"`((?:bert-jax|bash|python) [^`]+ [^`]+)`", text)
        for command in (words for block in (*blocks, *inline) for words in commands(block)):
            yield page.name, command
    for path in sorted(ROOT.glob("configs/*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        for block in re.findall(r"^    ((?:bert-jax|bash) (?:.|\n    )+)", text, re.MULTILINE):
            for command in commands(block):
                yield path.name, command
    for path in sorted((ROOT / "launch").rglob("*.sh")):
        text = re.sub(r"^# ?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for block in re.findall(r"^  (bash launch(?:.|\n  )+)", text, re.MULTILINE):
            for command in commands(block.partition("      ")[0]):
                yield path.name, command


def is_concrete(word: str) -> bool:
    """Whether a word stands for itself, unlike FILE, TARGET, --to=FORMAT and [--dry-run]."""
    return not re.search(r"^\[|\]$|\.\.\.|(^|=|/)[A-Z][A-Z:]+(\.[a-z]+)?$", word)


def as_verb(command: list[str]) -> list[str] | None:
    """The arguments of `bert-jax`, also those that a script passes on; None for other commands."""
    program, *rest = command or [""]
    if program == "bert-jax":
        return rest
    if rest[:2] == ["-m", "bert_jax"]:
        return rest[2:]
    if program == "bash" and Path(rest[0]).name in TRAINING_SCRIPTS:
        given = [word for word in rest[1:] if is_concrete(word)]
        recipe = (
            [] if any(word.startswith("--config=") for word in given) else ["--config=quickstart"]
        )
        return ["pretrain", *recipe, "--workdir=run", *given]
    return None


ALL = [(page, words) for page, words in documented() if words]
OURS = {
    " ".join(argv): argv
    for _, words in ALL
    if (argv := as_verb(words)) and all(map(is_concrete, argv))
}


class Parsed(Exception):
    """Carries what the parser of a verb returned."""


@pytest.fixture
def parsed(monkeypatch):
    """A function that gives what the parser of a verb makes of arguments; runs nothing."""

    def parse(argv):
        with monkeypatch.context() as patch:
            for name in ("parse_args", "parse_known_args"):
                method = getattr(argparse.ArgumentParser, name)

                def stop(parser, arguments=None, method=method):
                    patch.undo()
                    raise Parsed(method(parser, arguments))

                patch.setattr(argparse.ArgumentParser, name, stop)
            with pytest.raises(Parsed) as raised:
                importlib.import_module(f"bert_jax.cli.{argv[0]}").main(argv[1:])
        return raised.value.args[0]

    return parse


@pytest.mark.parametrize("argv", OURS.values(), ids=OURS)
def test_documented_command(argv, parsed, monkeypatch):
    for name in ("", ".lion", ".fables"):  # what docs/extending.md writes
        module = importlib.import_module(f"extensions{name}")
        monkeypatch.setitem(sys.modules, f"my_package{name}", module)
    found = parsed(argv)
    if argv[0] in CONFIGS:
        arguments, overrides = found
        load_config(CONFIGS[argv[0]], [f"--config={arguments.config}", *overrides])


def test_documents_are_read():
    assert len(OURS) > 40
    assert {argv[0] for argv in OURS.values()} == set(VERBS)


def test_documented_scripts_exist():
    scripts = {words[1] for _, words in ALL if words[0] in ("bash", "python", "python3")}
    named = {script for script in scripts if "/" in script}
    assert len(named) > 10
    assert [script for script in named if not (ROOT / script).exists()] == []


def test_readme_in_chinese_has_the_same_commands_and_links():
    def content(name: str) -> tuple[list[str], set[str]]:
        text = (ROOT / name).read_text(encoding="utf-8")
        links = set(re.findall(r"\]\(([^)]+)\)", text))
        return re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE), links

    blocks, links = content("README.md")
    translated, their_links = content("README.zh-CN.md")
    assert translated == blocks
    assert their_links - {"README.md"} == links - {"README.zh-CN.md"}


def test_site(tmp_path):
    """Built strictly: a broken link or a page that nothing leads to is an error."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", f"--site-dir={tmp_path}"]
    environment = {**os.environ, "REPOSITORY": "https://example.org/bert_jax"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "commands" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="([\w-]+)"', page)[:2] == ["prepare", "inspect"]
    assert "usage: bert-jax predict next-sentence" in page
    page = (tmp_path / "extending" / "index.html").read_text(encoding="utf-8")
    assert "https://example.org/bert_jax/blob/main/tests/extensions" in page
    assert "init_from" in (tmp_path / "config" / "index.html").read_text(encoding="utf-8")


def help_of(verb: str, capsys) -> str:
    with pytest.raises(SystemExit):
        main([*verb.split(), "--help"])
    return capsys.readouterr().out


PREDICT = (
    "fill-mask",
    "next-sentence",
    "features",
    "attention",
    "classify",
    "tag",
    "answer",
    "attributions",
)
PARSERS = [*(verb for verb in VERBS if verb != "predict"), *(f"predict {task}" for task in PREDICT)]


@pytest.mark.parametrize("verb", PARSERS)
def test_help_has_examples_and_is_as_wide_as_the_terminal(verb, capsys, monkeypatch, parsed):
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_of(verb, capsys).splitlines()
    assert max(len(line) for line in lines if not line.startswith("  ")) <= 80
    examples = [line for line in lines if re.match("  (bert-jax|printf) ", line)]
    assert examples
    for example in examples:
        *_, command = commands(example)
        assert command[1 : 1 + len(verb.split())] == verb.split()
        parsed(command[1:])


# Flags of other programs.
FOREIGN = {
    "--worker",
    "--file_format",
    "--data_dir",
    "--help",
    "--include",
    "--local-dir",
    "--repo-type",
}
# The verbs whose messages these modules, which others import too, write.
SPEAKS_TO = {
    "config.arguments": CONFIGS,
    "config.pretraining": CONFIGS,
    "config.recipes": CONFIGS,
    "inference.choices": ("export",),
    "interop.choices": ("convert",),
    "interop.initial": ("pretrain", "finetune"),
    "interop.google_tf": ("convert",),
    "interop.huggingface": ("convert",),
    "data.documents": ("prepare",),
    "data.limits": ("prepare",),
    "data.sampling": ("pretrain",),
    "parallel.cpu": ("pretrain", "finetune"),
    "parallel.hosts": ("pretrain", "finetune", "evaluate"),
    # Those that train catch its error, and say how to go on.
    "train.checkpoints": ("evaluate", "predict", "export", "convert"),
    "train.workdirs": ("pretrain", "finetune"),
    "api.convert": ("convert",),
    # Pruning scores with its function; it writes no message of evaluate's own.
    "api.evaluate": ("evaluate",),
    "train.trainer": ("pretrain", "finetune"),
    "pretraining.data": ("pretrain",),
    "pretraining.stages": ("pretrain",),
    "pretraining.resuming": ("pretrain",),
    "model.pruning": ("prune",),
}


def closure(module: str) -> set[str]:
    """A module and all of ours that it imports, directly or not."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in IMPORTS:
            if name not in found:
                found.add(name)
                waiting += IMPORTS[name]
        elif "." in name:
            waiting.append(name.rpartition(".")[0])
    return found


REACHED = {verb: closure(f"bert_jax.cli.{verb}") for verb in VERBS}


def messages(module: str) -> Iterator[str]:
    """The texts in a module other than docstrings; "{}" for each value in them."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.exists():
        path = path.with_suffix("") / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            yield "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


ADVICE = [
    (module, message)
    for module in sorted(IMPORTS)
    if not module.startswith(("bert_jax.cli", "bert_jax.__main__"))
    for message in messages(module)
    if re.search(r"(?<![\w-])--[a-z]", message)
]


@pytest.mark.parametrize(("module", "message"), ADVICE)
def test_advice_names_flags_of_the_verb(module, message, capsys):
    """Of a verb that it names, as in `bert-jax VERB --flag`, or of each verb that writes it."""
    writers = SPEAKS_TO.get(module.removeprefix("bert_jax."))
    if writers is None:
        writers = [verb for verb in VERBS if module in REACHED[verb]]
    named = re.findall(r"bert-jax (\w+)", message)
    for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", message)) - FOREIGN:
        have = [verb for verb in named or writers if flag in flags_of(verb, capsys)]
        assert have if named else have == list(writers), f"{flag} is of {have}"


def flags_of(verb: str, capsys) -> set[str]:
    parsers = [parser for parser in PARSERS if parser.split()[0] == verb]
    return set(re.findall(r"--[a-z][\w-]*", "".join(help_of(each, capsys) for each in parsers)))

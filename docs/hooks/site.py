"""What the site has beyond the pages in docs/: README, its neighbours, and the help of each verb.

MkDocs calls the functions by their names (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

import contextlib
import io
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from bert_jax.__main__ import VERBS, main

ROOT = Path(__file__).parents[2]
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
_LINK = re.compile(r"(\[[^\]\n]*\])\(((?!https?:|#)[^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not files in docs/."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_LINK.sub(_from_docs, text)))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files outside docs/ into links to the repository, or into plain text."""

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = os.path.normpath(os.path.join(os.path.dirname(page.file.src_uri), target))
        if not path.startswith(".."):
            return match[0]
        path = path.removeprefix("../")
        if not (ROOT / path.partition("#")[0]).exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {target}")
        return f"{text}({config.repo_url}/blob/main/{path})" if config.repo_url else text[1:-1]

    return _LINK.sub(link, markdown)


def commands() -> str:
    """A page with the help of every verb, as `bert-jax VERB --help` prints it."""
    names = []
    for verb in VERBS:
        tasks = re.findall(r"^    ([a-z-]+)(?: |$)", _help(verb), re.MULTILINE)
        names += [verb] if verb != "predict" else [f"predict {task}" for task in tasks]
    parts = [f"## {name}\n\n```text\n{_help(name)}```\n" for name in names]
    return "# Commands\n\nWhat `bert-jax VERB --help` prints.\n\n" + "\n".join(parts)


def _from_docs(match: re.Match[str]) -> str:
    """A link in a page of the root, as one in a page of docs/."""
    text, target = match.groups()
    name, anchor, part = target.partition("#")
    pages = {source: page for page, source in PAGES.items()}
    return f"{text}({pages.get(name) or os.path.relpath(name, 'docs')}{anchor}{part})"


def _help(name: str) -> str:
    os.environ["COLUMNS"] = "78"  # what a page shows without scrolling
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    return written.getvalue()

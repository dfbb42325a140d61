"""Self-contained HTML pages: templates of this package, filled."""

import html
import importlib.resources
import json
from typing import Any

from etils import epath

from bert_jax.storage import write_text


def fill(path: epath.PathLike, title: str, body: str) -> None:
    """Writes a page with a title, which is plain text, and a body, which is HTML."""
    page = _read("page.html").replace("{{title}}", html.escape(title))
    write_text(path, page.replace("{{body}}", body))


def fill_with_data(path: epath.PathLike, template: str, data: Any) -> None:
    """Writes a page whose script reads JSON-compatible `data` where the template has {{data}}."""
    # A text may hold "</script>", which would end the element that holds the data.
    text = json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")
    write_text(path, _read(template).replace("{{data}}", text))


def _read(template: str) -> str:
    return importlib.resources.files("bert_jax.report").joinpath(template).read_text("utf-8")

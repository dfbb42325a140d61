"""Generates docs/config.md, the reference of all fields, from their declarations.

python -m bert_jax.config.reference > docs/config.md
"""

import dataclasses
import inspect
from collections.abc import Iterator

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.fields import NOT_NEGATIVE, POSITIVE, Choice, fields_of, is_group, to_plain, type_of

_INTRODUCTION = """\
# Configuration

Every field of a recipe, with its default. `--config.GROUP.FIELD=VALUE` overrides one. Fields marked
with * may change when a run is resumed; the others may not. This page is generated from the
declarations of the fields: `python -m bert_jax.config.reference > docs/config.md`.

Several names are separated by commas: `--config.task.metric_names=f1,accuracy`. Names that hold a
comma, and several spellings of a class, are given as a Python tuple:
`--config.task.labels='(("no", "0"), ("yes", "1"))'`.

Some groups come in several kinds. Their `name` picks one, as in `--config.optimizer.name=lamb`;
each kind adds its own fields to those that all share. To use a kind of your own, name it
`MODULE:CLASS`; see [extending.md](extending.md).
"""
_BOUNDS = {POSITIVE: "positive", NOT_NEGATIVE: "not negative"}


def reference() -> str:
    """The page, in Markdown."""
    families: dict[type[Choice], None] = {}  # those that tables refer to, in order
    parts = [_INTRODUCTION]
    for title, cls in (("Pretraining", PretrainConfig), ("Fine-tuning", FinetuneConfig)):
        parts.append(f"## {title}\n\n{_table(_rows(cls, cls.__name__, '', families))}")
    told: set[type[Choice]] = set()
    while untold := [family for family in families if family not in told]:
        told.add(untold[0])
        parts.append("".join(_family(untold[0], families)))
    return "\n".join(parts)


def _rows(
    cls: type, owner: str, prefix: str, families: dict[type[Choice], None]
) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each field; nested groups come last."""
    groups = []
    for name, declared in fields_of(cls).items():
        annotation = type_of(cls, name)
        if is_group(annotation) and not issubclass(annotation, Choice):
            groups.append((name, annotation))
            continue
        if is_group(annotation):
            families[annotation] = None
            assert isinstance(declared.default, Choice)
            kind = f"`{declared.default.called()}`"
            yield (
                f"{prefix}{name}.name",
                kind,
                f"{declared.metadata['doc']}; see {_link(annotation)}",
            )
            continue
        mark = " *" if declared.metadata["resume"] else ""
        yield f"{prefix}{name}{mark}", f"`{_shown(declared.default)}`", _meaning(declared)
    for name, annotation in groups:
        yield from _rows(annotation, owner, f"{prefix}{name}.", families)


def _family(family: type[Choice], families: dict[type[Choice], None]) -> Iterator[str]:
    yield f"## {_title(family)}\n\n{_first_sentence(family)}\n\n"
    shared = fields_of(family)
    if shared:
        yield _table(_rows(family, "", "", families)) + "\n"
    names = {kind: name for name, kind in family.kinds().items()}
    for kind, name in names.items():
        parent = next(each for each in kind.__mro__[1:] if each in names or each is family)
        like = "" if parent is family else f" Same as `{names[parent]}`, except:"
        yield f"`{name}`: {_first_sentence(kind)}{like}\n\n"
        known = fields_of(parent)
        own = {
            each
            for each, f in fields_of(kind).items()
            if each not in known or f.default != known[each].default
        }
        rows = _rows(kind, "", "", families)
        shown = [row for row in rows if row[0].split(".")[0].removesuffix(" *") in own]
        if shown:
            yield _table(iter(shown)) + "\n"


def _title(family: type[Choice]) -> str:
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in family.__name__)
    return words.strip().capitalize()


def _link(family: type[Choice]) -> str:
    title = _title(family)
    return f"[{title}](#{title.lower().replace(' ', '-')})"


def _first_sentence(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def _meaning(declared: dataclasses.Field[object]) -> str:
    metadata = declared.metadata
    parts = [metadata["doc"]]
    if metadata["choices"]:
        parts.append("one of " + ", ".join(f"`{choice}`" for choice in metadata["choices"]))
    if metadata["bounds"]:
        parts.append(_BOUNDS.get(metadata["bounds"], f"in {metadata['bounds']}"))
    return "; ".join(parts)


def _shown(value: object) -> str:
    return '""' if value == "" else str(to_plain(value) if not isinstance(value, tuple) else value)


def _table(rows: Iterator[tuple[str, str, str]]) -> str:
    lines = ["| field | default | meaning |", "|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")

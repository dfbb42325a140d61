"""Nested plain values of configurations: flattened, merged and compared."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bert_jax.fields import Choice, Plain, fields_of, is_group, type_of


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data.batch_size": 8} for {"data": {"batch_size": 8}}."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def merge(cls: type, fields: Mapping[str, Any], changes: Mapping[str, Any]) -> Plain:
    """Applies changes to the `fields` of the group `cls`.

    If the kind of a `Choice` changes, fields that the new kind also has keep their values; the
    others are dropped.
    """
    merged: Plain = dict(fields)
    for name, change in changes.items():
        annotation = type_of(cls, name) if name in fields_of(cls) else None
        if not is_group(annotation):
            merged[name] = change
            continue
        if isinstance(change, str):
            change = {"name": change}
        before = merged.get(name, {})
        before = {"name": before} if isinstance(before, str) else before
        if issubclass(annotation, Choice):
            kind_name = change.get("name", before.get("name"))
            kind = annotation.kind(kind_name, f"config.{name}.name")
            before = {k: v for k, v in before.items() if k == "name" or k in fields_of(kind)}
            merged[name] = {"name": kind_name} | merge(kind, before, change)
        else:
            merged[name] = merge(annotation, before, change)
    return merged


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines "field: old -> new" for every leaf that differs."""
    lines: list[str] = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{name}.")
        elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
            lines += differences(
                dict(_by_index(name, before)), dict(_by_index(name, after)), prefix
            )
        elif before != after:
            lines.append(f"{prefix}{name}: {before!r} -> {after!r}")
    return lines


def _by_index(name: str, items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{name}[{index}]", item) for index, item in enumerate(items))

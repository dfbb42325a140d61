"""Names of one thing: one name, or several that mean the same."""

from typing import TypeAlias

Names: TypeAlias = str | tuple[str, ...]


def all_of(names: Names) -> tuple[str, ...]:
    """Every name; none of ""."""
    return (names,) if isinstance(names, str) and names else tuple(names)


def either(names: Names) -> str:
    """The names in a message."""
    return " or ".join(map(repr, all_of(names)))

"""Names: one name, or several alternatives."""

from typing import TypeAlias

Names: TypeAlias = str | tuple[str, ...]


def all_of(names: Names) -> tuple[str, ...]:
    """Every name; none for ""."""
    return (names,) if isinstance(names, str) and names else tuple(names)


def either(names: Names) -> str:
    """The names, for a message."""
    return " or ".join(map(repr, all_of(names)))

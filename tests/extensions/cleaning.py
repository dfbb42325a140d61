"""Filters: a function that cleans texts, and a class with an option."""

from dataclasses import dataclass

from bert_jax.data.filters import Filter
from bert_jax.fields import field


def without_notices(text: str) -> str | None:
    """Drops the lines of web pages that say nothing; None leaves a document out."""
    if text.startswith("404 "):
        return None
    return "\n".join(line for line in text.splitlines() if "cookies" not in line.lower())


@dataclass(frozen=True)
class FewDigits(Filter):
    """Leaves out tables of numbers."""

    share: float = field(0.2, "largest share of digits", bounds="[0, 1]")

    def apply(self, text: str) -> str | None:
        return text if sum(map(str.isdigit, text)) <= self.share * len(text) else None

"""A document source: fables that a program writes."""

from collections.abc import Callable, Iterator
from typing import Any

ANIMALS = ("fox", "crow", "lion", "mouse", "hare", "tortoise", "wolf", "crane", "frog", "ox")


class Fables:
    """A hundred short documents, always the same."""

    size = 100  # for the progress bar; here of documents

    def fingerprint(self) -> dict[str, Any]:
        """What tells these documents from others, for the store's manifest."""
        return {"name": "fables", "version": 1}

    def documents(self, advance: Callable[[int], object]) -> Iterator[str]:
        """The text of each document; a line break ends a sentence."""
        for number in range(self.size):
            first, second = ANIMALS[number % 10], ANIMALS[(number // 10 + number + 3) % 10]
            yield (
                f"The {first} met the {second} in wood {number}.\n"
                f"The {second} asked the {first} for food.\n"
                f"The {first} gave nothing, and the {second} went away.\n"
                "So it is with those who ask in vain."
            )
            advance(1)

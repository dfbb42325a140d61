"""The texts that a model takes: strings, and pairs of strings."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks.tagging.example import Sentence

Text = str | tuple[str, str]  # a pair is A and B


def checked(
    texts: Iterable[Any], *, text: bool = True, pair: bool = True, words: bool = False
) -> Iterator[Any]:
    """Yields the texts unchanged, after checking each.

    Args:
      texts: texts to check.
      text: whether a string may be among them.
      pair: whether a pair of strings may be among them, a tuple or a list.
      words: whether a list of strings may be among them, or a `Sentence`.

    Raises:
      UserError: a text is something else, or `texts` is not several: a string, bytes, a mapping.
    """
    kinds = {"a string": text, "a pair of strings": pair, "a list of words": words}
    wanted = " or ".join(kind for kind, allowed in kinds.items() if allowed)
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise UserError(f"texts must be a list, each of them {wanted}, not {excerpt(texts)}")
    for number, item in enumerate(texts, 1):
        is_text = isinstance(item, str)
        is_pair = isinstance(item, (tuple, list)) and [*map(type, item)] == [str, str]
        is_words = isinstance(item, Sentence) or (
            isinstance(item, list) and all(isinstance(word, str) for word in item)
        )
        if not ((text and is_text) or (pair and is_pair) or (words and is_words)):
            raise UserError(f"text number {number} must be {wanted}, not {excerpt(item)}")
        yield item


def excerpt(text: Any) -> str:
    """The beginning of a text, for messages."""
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."

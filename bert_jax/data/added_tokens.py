"""Added tokens: strings that are one token wherever they are in a text, as in Hugging Face.

They are found before a text is split into words. Most mark something, such as [E1] around an
entity, and take the place of an unused token or come after the vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from bert_jax.errors import UserError
from bert_jax.storage import read_json

# Files in which older versions of transformers keep them.
IDS_FILE, MAP_FILE = "added_tokens.json", "special_tokens_map.json"


@dataclass(frozen=True)
class AddedToken:
    """An added token, with the fields that Hugging Face's files give it.

    Attributes:
      content: the string.
      single_word: whether it counts only where no letter or digit touches it.
      lstrip, rstrip: whether it takes the white space on its left or right.
      normalized: whether it is looked up in the normalised text; else in the text as it is.
      special: whether it marks something; such a token is never masked in pretraining.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False


@dataclass(frozen=True)
class _Map:
    """What a special_tokens_map.json says of further tokens."""

    additional_special_tokens: list[str | dict[str, Any]] | None = None


def read_added_tokens(
    folder: epath.Path, decoder: Mapping[str, AddedToken] | None
) -> dict[AddedToken, int | None]:
    """The added tokens that the files beside a vocab.txt name, with their ids.

    Args:
      folder: directory of the vocabulary.
      decoder: the `added_tokens_decoder` of its tokenizer_config.json, tokens by id.

    Returns:
      None in place of an id that no file gives.

    Raises:
      UserError: a file is damaged, or an id is no number.
    """
    found: dict[AddedToken, int | None] = {}
    for id_, token in (decoder or {}).items():
        if not id_.isdecimal():
            raise UserError(f"{folder}: added_tokens_decoder: {id_!r} is not an id")
        found[token] = int(id_)
    known = {token.content for token in found}
    file, map_file = folder / IDS_FILE, folder / MAP_FILE
    ids = read_json(file, dict[str, int]) if file.exists() else {}
    extra = read_json(map_file, _Map).additional_special_tokens if map_file.exists() else None
    special = [x if isinstance(x, str) else str(x.get("content")) for x in extra or ()]
    for content in dict.fromkeys([*ids, *special]):
        if content not in known:
            is_special = content in special
            token = AddedToken(content, special=is_special, normalized=not is_special)
            found[token] = ids.get(content)
    return found


def with_added_tokens(
    vocab: Sequence[str], found: Mapping[AddedToken, int | None], ignored: Iterable[str], place: str
) -> tuple[tuple[str, ...], tuple[AddedToken, ...], int]:
    """A vocabulary with its added tokens.

    Args:
      vocab: token of each id, without those after the vocabulary.
      found: added tokens with their ids; None for a token of the vocabulary.
      ignored: tokens that every vocabulary has.
      place: what errors name.

    Returns:
      The token of each id; the added tokens by ascending id; how many of them come after `vocab`.

    Raises:
      UserError: an id belongs to another token, or ids between are missing.
    """
    ids = {token: id_ for id_, token in enumerate(vocab)}
    placed: dict[AddedToken, int] = {}
    for token, given in found.items():
        id_ = ids.get(token.content) if given is None else given
        if id_ is None:
            raise UserError(f"{place}: the added token {token.content!r} has no id in any file")
        if token.content not in ignored:
            placed[token] = id_
        if token.content in ids and ids[token.content] != id_:
            raise UserError(
                f"{place}: the added token {token.content!r} has id {id_}, but is token "
                f"{ids[token.content]} of the vocabulary"
            )
    if len(ids) < len(vocab) and any(id_ >= len(vocab) for id_ in placed.values()):
        raise UserError(f"{place}: has a token twice, so the ids of added tokens are not certain")
    tokens = list(vocab)
    order = sorted(placed, key=placed.__getitem__)
    for token in order:
        id_ = placed[token]
        if id_ == len(tokens):
            tokens.append(token.content)
        elif id_ > len(tokens) or tokens[id_] != token.content:
            there = repr(tokens[id_]) if id_ < len(tokens) else f"no token from {len(tokens)} on"
            raise UserError(
                f"{place}: the added token {token.content!r} has id {id_}, but there the "
                f"vocabulary has {there}"
            )
    return tuple(tokens), tuple(order), len(tokens) - len(vocab)

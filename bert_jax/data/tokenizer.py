"""Tokenizers: text to ids and back. `Tokenizer` is what all kinds of them have in common."""

import abc
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from bert_jax.storage import write_text

# A directory holds a vocab.txt if its tokenizer is WordPiece, a tokenizer.json if it is another.
VOCAB_FILE, TOKENIZER_FILE, CONFIG_FILE = "vocab.txt", "tokenizer.json", "tokenizer_config.json"


class Encoded(NamedTuple):
    """The tokens of a text.

    Attributes:
      ids: id of each.
      offsets: int32 [n, 2] start and end: a token is `text[start:end]`, without white space at its
        edges and with marks after it that normalisation drops. Tokens of one character share its
        position; a token of white space alone is empty, and stands before the next word.
    """

    ids: list[int]
    offsets: np.ndarray


class Word(NamedTuple):
    """The tokens of a word: their ids, and which is the first with a character of the word."""

    ids: list[int]
    first: int


class Tokenizer(abc.ABC):
    """A vocabulary, and how text is cut into its pieces.

    Special tokens are known by what they do, not by how they are spelled: `<s>` is `cls_id` in
    RoBERTa, as [CLS] is in BERT. In a text their spellings are plain text, except to
    `encode_marked`.

    Attributes:
      vocab: token of each id; an id without a token has "".
      lowercase: whether text is lower-cased.
      separators: [SEP] tokens between the texts of a pair, 1 or more.
      has_pair_types: whether its library gives the second text of a pair token type 1.
    """

    vocab: tuple[str, ...]
    lowercase: bool
    separators: int = 1
    has_pair_types: bool = True

    @property
    @abc.abstractmethod
    def pad_id(self) -> int: ...

    @property
    @abc.abstractmethod
    def unk_id(self) -> int:
        """Id of what the vocabulary lacks; `mask_id` if there is no such token."""

    @property
    @abc.abstractmethod
    def cls_id(self) -> int: ...

    @property
    @abc.abstractmethod
    def sep_id(self) -> int: ...

    @property
    @abc.abstractmethod
    def mask_id(self) -> int: ...

    @property
    @abc.abstractmethod
    def special_ids(self) -> np.ndarray:
        """int32, ascending: tokens that are never predicted in pretraining."""

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """Size and kind, for people."""

    @property
    @abc.abstractmethod
    def files(self) -> Mapping[str, str]:
        """Text of each file that `save` writes."""

    @property
    def vocab_hash(self) -> str:
        """sha256 that identifies the vocabulary and everything that decides about ids."""
        return hashlib.sha256("".join(self.files.values()).encode()).hexdigest()

    @property
    @abc.abstractmethod
    def pieces_tell_words(self) -> bool:
        """Whether `is_continuation` says where words begin; else only a text tells it."""

    @property
    @abc.abstractmethod
    def is_continuation(self) -> np.ndarray:
        """bool [vocab_size]: the token says itself that it continues a word, as '##ing' does."""

    @property
    @abc.abstractmethod
    def pieces(self) -> Sequence[str]:
        """The text of each id, readable; a leading space says that the piece follows one."""

    @abc.abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. No special token is added."""

    @abc.abstractmethod
    def encode_sentences(self, sentences: Sequence[str]) -> list[Encoded]:
        """Sentences of one document, encoded as in the text that they are from: where a space
        before a word matters, those after the first have one."""

    @abc.abstractmethod
    def encode_words(self, words: Sequence[str]) -> list[Word]:
        """Words of a text that was split before, each encoded as after a space.

        So a word has the same pieces wherever it stands. A word without a piece (control
        characters) has no ids.
        """

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> Encoded:
        """A text's ids, the same as from `encode`, and their positions in it."""

    @abc.abstractmethod
    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which special tokens, such as '[MASK]', may be written."""

    @abc.abstractmethod
    def unknown_words(self, text: str) -> list[int]:
        """Length in characters of each part of `text` that becomes `unk_id`."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Readable text, without what `encode` dropped, such as case and spacing."""

    def save(self, directory: epath.PathLike) -> None:
        """Writes the files of the tokenizer, and removes those of one of another kind."""
        for name in {VOCAB_FILE, TOKENIZER_FILE} - self.files.keys():
            (epath.Path(directory) / name).unlink(missing_ok=True)
        for name, text in self.files.items():
            write_text(epath.Path(directory) / name, text)

"""Tokenizers of any kind that a tokenizer.json of the `tokenizers` library describes."""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from bert_jax.data.added_tokens import MAP_FILE
from bert_jax.data.tokenizer import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    VOCAB_FILE,
    Encoded,
    Tokenizer,
    Word,
)
from bert_jax.data.wordpiece import check_agrees, load_wordpiece
from bert_jax.data.words import trimmed
from bert_jax.errors import UserError
from bert_jax.json_values import dump_json, parse_json
from bert_jax.storage import read_json

_LOG = logging.getLogger(__name__)
# What a token is for -> its field in a tokenizer_config.json, the field of models that have no
# such token but one with its use, and usual spellings, for files that do not say it.
_ROLES = {
    "pad": ("pad_token", None, ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")),
    "unk": ("unk_token", None, ("[UNK]", "<unk>", "<|unk|>")),
    "cls": ("cls_token", "bos_token", ("[CLS]", "<cls>", "<s>", "<bos>")),
    "sep": ("sep_token", "eos_token", ("[SEP]", "<sep>", "</s>", "<eos>")),
    "mask": ("mask_token", None, ("[MASK]", "<mask>", "<|mask|>")),
}
_NAMES = [name for role in _ROLES.values() for name in role[:2] if name]
_MAX_SIZE = 2**24  # ids that no token has take memory, too
_UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]|<\|reserved_special_token_\d+\|>")
_NO_TEXT = "\uffff"  # a code point that no text has
# Kind of the model in a tokenizer.json -> how people call it.
_KINDS = {"BPE": "BPE", "Unigram": "Unigram", "WordPiece": "WordPiece", "WordLevel": "words"}


@dataclass(frozen=True)
class JsonTokenizer(Tokenizer):
    """What a tokenizer.json describes: byte-level BPE, Unigram, whole characters, words.

    Attributes:
      definition: content of the tokenizer.json. Truncation and padding in it are not applied.
      config: content of the tokenizer_config.json, which may name the special tokens; empty for
        one with those that are found in `definition`.

    Raises:
      UserError: the library cannot read it, or a special token that BERT needs is not found.
    """

    definition: str = field(repr=False)
    config: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        ids = self._whole.get_vocab(with_added_tokens=True)
        size = max(ids.values(), default=-1) + 1
        if size > _MAX_SIZE:
            raise UserError(f"a token has the id {size - 1:,}, beyond any vocabulary; damaged?")
        vocab = [""] * size
        for token, id_ in ids.items():
            if vocab[id_]:
                raise UserError(f"{vocab[id_]!r} and {token!r} have the same id {id_}; damaged?")
            vocab[id_] = token
        object.__setattr__(self, "vocab", tuple(vocab))
        object.__setattr__(self, "lowercase", self._normalized("A") == "a")
        object.__setattr__(self, "separators", self._around[2])
        object.__setattr__(self, "has_pair_types", any(self._whole.encode("a", "a").type_ids))
        missing = [_ROLES[name][0] for name in _ROLES if name not in (*self.roles, "unk")]
        if missing:
            raise UserError(f"no {', '.join(missing)}: name the token in {CONFIG_FILE}")
        if not self.config:
            roles = {_ROLES[name][0]: token for name, token in self.roles.items()}
            fields = {"tokenizer_class": "PreTrainedTokenizerFast"} | roles
            object.__setattr__(self, "config", json.dumps(fields, indent=2) + "\n")
        with _library_errors():
            self._plain.encode(_NO_TEXT)  # fails where what is unknown has no token
        if self.unk_id == self.mask_id and not self._is_byte_level:
            _LOG.warning("a tokenizer without unknown token: what its vocabulary lacks is dropped")

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """The definition as the library writes it, with every field."""
        fields: dict[str, Any] = json.loads(self._whole.to_str())
        return fields

    @cached_property
    def _whole(self) -> tokenizers.Tokenizer:
        """As the file has it: special tokens are found in texts, and put around them."""
        tokenizer = _from_json(self.definition)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """One to which the spellings of special tokens are plain text."""
        fields: dict[str, Any] = json.loads(self._whole.to_str())
        model, special = fields["model"], set(self.roles.values())
        known = _model_vocab(model) & special
        # A model may match its own special tokens in a text: it gets names for them that no text
        # has. Those that only the library adds are plain text by `encode_special_tokens`.
        hidden = {token: _NO_TEXT + token for token in known}
        if isinstance(model["vocab"], dict):
            model["vocab"] = {hidden.get(t, t): id_ for t, id_ in model["vocab"].items()}
        else:
            model["vocab"] = [[hidden.get(t, t), score] for t, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
        fields["added_tokens"] = [
            token | {"special": token["content"] in special}
            for token in fields["added_tokens"]
            if token["content"] not in known
        ]
        fields |= {"post_processor": None, "truncation": None, "padding": None}
        tokenizer = _from_json(json.dumps(fields))
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _around(self) -> tuple[str | None, str | None, int]:
        """The tokens that are put before and after a text, and how many between two texts."""
        probes = ("a", *(token for token in self.vocab if len(token) == 1))
        with _library_errors():
            found = (p for p in probes if self._whole.encode(p, add_special_tokens=False).ids)
            probe = next(found, "a")
            single, pair = self._whole.encode(probe), self._whole.encode(probe, probe)
        before, after = _edges(single)
        if max(len(before), len(after)) > 1:
            raise UserError(
                f"puts {' '.join([*before, 'text', *after])}: only one token can be at each end"
            )
        owners = pair.sequence_ids
        between = 1
        if before and after and 0 in owners and 1 in owners:
            last = len(owners) - 1 - owners[::-1].index(0)
            tokens = pair.tokens[last + 1 : owners.index(1)]
            if not tokens or set(tokens) != {after[0]}:
                _LOG.warning(
                    f"{' '.join(tokens) or 'nothing'} is put between two texts; here it is one "
                    f"{after[0]}"
                )
            else:
                between = len(tokens)
        return next(iter(before), None), next(iter(after), None), between

    @cached_property
    def roles(self) -> dict[str, str]:
        """Token by what it is for: "pad", "cls", "sep", "mask", and "unk" if there is one."""
        config = self._config_fields
        before, after, _ = self._around
        unknown = self._fields["model"].get("unk_token")
        unk_id = self._fields["model"].get("unk_id")
        if unk_id is not None and unk_id < len(self.vocab):
            unknown = self.vocab[unk_id]
        found: dict[str, str] = {}
        for name, (own, other, spellings) in _ROLES.items():
            stated = {"cls": before, "sep": after, "unk": unknown}.get(name)
            candidates = (stated, config.get(own), config.get(other or ""), *spellings)
            if token := next((token for token in candidates if token in self._ids), None):
                found[name] = token
        return found

    @cached_property
    def _config_fields(self) -> dict[str, Any]:
        """Fields of the tokenizer_config.json, tokens as strings."""
        fields = parse_json(self.config or "{}", CONFIG_FILE)
        if not isinstance(fields, dict):
            raise UserError(f"{CONFIG_FILE}: must be an object")
        fields = {name: _content(value) for name, value in fields.items()}
        for name in _NAMES:
            if not isinstance(token := fields.get(name), str | None):
                raise UserError(f"{CONFIG_FILE}: {name} is {token!r:.40}, which is not a token")
        return fields

    @cached_property
    def _ids(self) -> dict[str | None, int]:
        return {token: id_ for id_, token in enumerate(self.vocab) if token}

    @property
    def pad_id(self) -> int:
        return self._ids[self.roles["pad"]]

    @property
    def unk_id(self) -> int:
        return self._ids[self.roles.get("unk", self.roles["mask"])]

    @property
    def cls_id(self) -> int:
        return self._ids[self.roles["cls"]]

    @property
    def sep_id(self) -> int:
        return self._ids[self.roles["sep"]]

    @property
    def mask_id(self) -> int:
        return self._ids[self.roles["mask"]]

    @cached_property
    def special_ids(self) -> np.ndarray:
        special = {self._config_fields.get(name) for name in _NAMES} | set(self.roles.values())
        special |= {x["content"] for x in self._fields["added_tokens"] if x["special"]}
        ids = [
            id_
            for id_, token in enumerate(self.vocab)
            if not token or token in special or _UNUSED.fullmatch(token)
        ]
        return np.array(ids, np.int32)

    @property
    def description(self) -> str:
        kind = _KINDS[self._fields["model"]["type"]]
        if self._is_byte_level:
            kind = f"byte-level {kind}"
        elif self._has_only_characters:
            kind = "characters"
        return f"{len(self.vocab):,} tokens, {kind}, {'un' * self.lowercase}cased"

    @property
    def files(self) -> Mapping[str, str]:
        return {TOKENIZER_FILE: self.definition, CONFIG_FILE: self.config}

    @cached_property
    def vocab_hash(self) -> str:
        fields = parse_json(self.definition, TOKENIZER_FILE)
        aside = dict.fromkeys(("version", "truncation", "padding"))
        identity = [fields | aside, self.roles]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def pieces_tell_words(self) -> bool:
        return self._has_only_characters and not self._has_space

    @cached_property
    def is_continuation(self) -> np.ndarray:
        return np.zeros(len(self.vocab), bool)

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        added = {token["content"] for token in self._fields["added_tokens"]}
        return tuple(t if t in added else self._readable(t) for t in self.vocab)

    def _readable(self, token: str) -> str:
        if self._is_byte_level and all(c in _BYTES for c in token):
            return bytes(_BYTES[c] for c in token).decode("utf-8", "backslashreplace")
        return token.replace("▁", " ")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._encodings(texts)]

    def encode_with_offsets(self, text: str) -> Encoded:
        return next(self._encoded([text], [""]))

    def encode_sentences(self, sentences: Sequence[str]) -> list[Encoded]:
        return [*self._encoded(sentences, ["", *[self._lead] * (len(sentences) - 1)])]

    def encode_words(self, words: Sequence[str]) -> list[Word]:
        found = []
        for ids, offsets in self._encoded(words, [self._lead] * len(words)):
            with_text = np.flatnonzero(offsets[:, 0] < offsets[:, 1])
            found.append(Word(ids, int(with_text[0]) if len(with_text) else 0))
        return found

    def unknown_words(self, text: str) -> list[int]:
        ids, offsets = self.encode_with_offsets(text)
        lengths = (offsets[:, 1] - offsets[:, 0])[np.array(ids) == self.unk_id]
        return [int(length) for length in lengths]

    def encode_marked(self, text: str) -> list[int]:
        ids: list[int] = self._whole.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._whole.decode(list(ids), skip_special_tokens=False)
        return text

    def _encodings(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        found: list[tokenizers.Encoding] = self._plain.encode_batch(
            list(texts), add_special_tokens=False
        )
        return found

    def _encoded(self, texts: Sequence[str], leads: Sequence[str]) -> Iterator[Encoded]:
        """Encodes texts, each after a lead of no or one space that is no part of the text."""
        encodings = self._encodings([lead + text for lead, text in zip(leads, texts)])
        for text, lead, encoding in zip(texts, leads, encodings):
            offsets = np.array(encoding.offsets, int).reshape(-1, 2) - len(lead)
            yield Encoded(encoding.ids, trimmed(text, np.maximum(offsets, 0)))

    @cached_property
    def _probe(self) -> str:
        """A text of one known character."""
        known = (t for t in self.vocab if len(t) == 1 and t.isalnum())
        return next((c for c in ("a", "A", *known) if self._is_known(c)), "a")

    def _is_known(self, text: str) -> bool:
        (ids,) = self.encode([text])
        return bool(ids) and self.unk_id not in ids

    @cached_property
    def _lead(self) -> str:
        """What stands before a word inside a text: a space, unless spaces are unknown."""
        return " " if self._is_known(f" {self._probe}") else ""

    @cached_property
    def _has_space(self) -> bool:
        """Whether a space between words becomes a token or a part of one."""
        probe = self._probe
        apart, together = self.encode([f"{probe} {probe}", probe * 2])
        return bool(self._lead) and apart != together

    @cached_property
    def _has_only_characters(self) -> bool:
        added = {token["content"] for token in self._fields["added_tokens"]}
        special = set(self.special_ids.tolist())
        tokens = (t for i, t in enumerate(self.vocab) if i not in special and t not in added)
        return not self._is_byte_level and all(len(token) == 1 for token in tokens)

    @cached_property
    def _is_byte_level(self) -> bool:
        parts = [self._fields.get(name) for name in ("normalizer", "pre_tokenizer")]
        return '"ByteLevel"' in json.dumps(parts)

    @property
    def strips_accents(self) -> bool:
        """Whether é becomes e."""
        return self._normalized("\u00e9") == "e"

    def _normalized(self, text: str) -> str:
        normalizer = self._whole.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)


def load_tokenizer(
    path: epath.Path, *, lowercase: bool | None = None, strip_accents: bool | None = None
) -> Tokenizer:
    """The tokenizer of a store, run, export or converted model: WordPiece if it has a vocab.txt.

    Args:
      path: directory, local or gs://, or a vocab.txt.
      lowercase, strip_accents: see `load_wordpiece`.

    Raises:
      UserError: no tokenizer is there, or it is damaged.
    """
    if (path / TOKENIZER_FILE).exists() and not (path / VOCAB_FILE).exists():
        return load_tokenizer_json(path / TOKENIZER_FILE, lowercase=lowercase)
    return load_wordpiece(path, lowercase=lowercase, strip_accents=strip_accents)


def load_tokenizer_json(
    file: epath.Path, *, lowercase: bool | None = None, strip_accents: bool | None = None
) -> JsonTokenizer:
    """Loads a tokenizer.json of any kind.

    The special tokens are those that it puts around texts, and those that a tokenizer_config.json
    or special_tokens_map.json beside it names.

    Args:
      file: path of the file.
      lowercase: whether text is lower-cased; must agree with the file.
      strip_accents: whether accents are dropped; must agree with the file.

    Raises:
      UserError: the file is damaged, or BERT cannot use the tokenizer.
    """
    config = described_beside(file.parent)
    try:
        tokenizer = JsonTokenizer(_read_text(file), config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    check_agrees(lowercase, tokenizer.lowercase, f"{file}: lower-casing")
    check_agrees(strip_accents, tokenizer.strips_accents, f"{file}: accent stripping")
    return tokenizer


def parse_definition(file: epath.Path) -> dict[str, Any]:
    """A tokenizer.json with every field, as the library writes it.

    Raises:
      UserError: no such file, or the library cannot read it.
    """
    if not file.exists():
        raise UserError(f"{file}: no such file")
    try:
        fields: dict[str, Any] = json.loads(_from_json(_read_text(file)).to_str())
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return fields


def described_beside(folder: epath.Path) -> str:
    """The tokenizer_config.json of a folder, with what a special_tokens_map.json says beside it;
    empty if there is none."""
    config_file, map_file = folder / CONFIG_FILE, folder / MAP_FILE
    config = _read_text(config_file) if config_file.exists() else ""
    if map_file.exists():  # of older versions of transformers
        fields = read_json(config_file) if config_file.exists() else {}
        further = {k: v for k, v in read_json(map_file).items() if k not in fields}
        if not further.keys().isdisjoint(_NAMES):
            return dump_json(fields | further, indent=2) + "\n"
    return config


def _read_text(file: epath.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not JSON (a byte is not UTF-8); damaged?") from error


def _from_json(definition: str) -> tokenizers.Tokenizer:
    with _library_errors():
        return tokenizers.Tokenizer.from_str(definition)


@contextlib.contextmanager
def _library_errors() -> Iterator[None]:
    """Raises a UserError for every error of the library in the block."""
    try:
        yield
    except BaseException as error:  # it also panics, which is no `Exception`
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UserError(f"not a tokenizer ({error})") from error


def _model_vocab(model: Mapping[str, Any]) -> set[str]:
    vocab = model["vocab"]
    return set(vocab) if isinstance(vocab, dict) else {token for token, _ in vocab}


def _edges(encoding: tokenizers.Encoding) -> tuple[list[str], list[str]]:
    """The tokens before and after a text."""
    own = [i for i, owner in enumerate(encoding.sequence_ids) if owner is not None]
    if not own:
        return [], []
    return encoding.tokens[: own[0]], encoding.tokens[own[-1] + 1 :]


def _content(value: Any) -> Any:
    """A token of a tokenizer_config.json, which may be an object, as a string."""
    return value.get("content") if isinstance(value, dict) else value


def _byte_characters() -> dict[str, int]:
    """Byte that each character of a byte-level vocabulary stands for (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_characters()

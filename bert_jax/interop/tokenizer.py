"""Reads and writes the tokenizer files of Hugging Face."""

import json
from typing import Any

from etils import epath
from tokenizers import Tokenizer

from bert_jax.data.added_tokens import MAP_FILE, AddedToken, with_added_tokens
from bert_jax.data.wordpiece import (
    CONFIG_FILE,
    SPECIAL_TOKENS,
    UNK,
    VOCAB_FILE,
    TokenizerConfig,
    WordPiece,
    check_agrees,
    load_wordpiece,
)
from bert_jax.errors import UserError
from bert_jax.json_values import typed
from bert_jax.storage import read_json, write_json

TOKENIZER_FILE = "tokenizer.json"
# Name in tokenizer_config.json and special_tokens_map.json -> token.
SPECIAL_FIELDS = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
# Values that BERT's tokenizer.json must have.
REQUIRED: dict[str, dict[str, Any]] = {
    "normalizer": {"type": "BertNormalizer", "clean_text": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {
        "type": "WordPiece",
        "unk_token": UNK,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    },
}
# Name in tokenizer_config.json -> name in the normalizer of a tokenizer.json.
NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def read_wordpiece(
    path: epath.Path, *, lowercase: bool | None = None, strip_accents: bool | None = None
) -> WordPiece:
    """The vocabulary of a tokenizer.json, a vocab.txt or both.

    Args:
      path: local directory.
      lowercase: whether the vocabulary is uncased; required if no file says, else must agree.
      strip_accents: whether accents are dropped, if no file says; else must agree.

    Raises:
      UserError: not a vocabulary of BERT, or the files contradict each other or `lowercase`.
    """
    file, config_file = path / TOKENIZER_FILE, path / CONFIG_FILE
    if not file.exists():
        _check_special_tokens(path)
        return load_wordpiece(path, lowercase=lowercase, strip_accents=strip_accents)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{file}: not a tokenizer ({error})") from error
    fields = json.loads(tokenizer.to_str())
    for section, required in REQUIRED.items():
        found = fields[section] or {}
        for name, value in required.items():
            if found.get(name) != value:
                found = found.get(name)
                raise UserError(f"{file}: {section}.{name} is {found!r}; BERT's is {value!r}")
    ids = fields["model"]["vocab"]
    words = tuple(sorted(ids, key=ids.get))
    _check_special_tokens(path)
    configured = TokenizerConfig()
    if config_file.exists():
        configured = read_json(config_file, TokenizerConfig)
    options: dict[str, Any] = {}
    for name, theirs in NORMALIZER.items():
        here, there = fields["normalizer"][theirs], getattr(configured, name)
        if None not in (here, there) and here != there:
            raise UserError(
                f"{path}: {name} is {there} in {CONFIG_FILE}, but {here} in {TOKENIZER_FILE}"
            )
        options[name] = there if here is None else here
    uncased, strips = options["do_lower_case"], options["strip_accents"]
    check_agrees(lowercase, uncased, f"{path}: do_lower_case")
    check_agrees(strip_accents, uncased if strips is None else strips, f"{path}: strip_accents")
    if (path / VOCAB_FILE).exists():
        beside = load_wordpiece(path, lowercase=uncased)
        words = beside.vocab[: len(beside.vocab) - beside.appended]
        if {token: id_ for id_, token in enumerate(words)} != ids:
            raise UserError(f"{path}: {VOCAB_FILE} and {TOKENIZER_FILE} differ in vocabulary")
    # A token that vocab.txt has twice leaves a gap between the ids.
    if max(ids.values()) != len(words) - 1:
        raise UserError(f"{file}: the ids of the vocabulary are not 0, 1, ... {len(words) - 1}")
    found = {typed(x, AddedToken, f"{file}: added_tokens"): x["id"] for x in fields["added_tokens"]}
    vocab, added, appended = with_added_tokens(words, found, SPECIAL_TOKENS, str(file))
    return WordPiece(
        vocab,
        lowercase=uncased,
        tokenize_chinese_chars=options["tokenize_chinese_chars"],
        strip_accents=strips,
        added_tokens=added,
        appended=appended,
    )


def _check_special_tokens(path: epath.Path) -> None:
    """Raises UserError if a file gives [CLS], [MASK] or another special token another name."""
    for name in (CONFIG_FILE, MAP_FILE):
        fields = read_json(path / name) if (path / name).exists() else {}
        for field, token in SPECIAL_FIELDS.items():
            given = fields.get(field)
            content = given.get("content") if isinstance(given, dict) else given
            if content not in (None, token):
                raise UserError(f"{path / name}: {field} is {content!r}; only {token} can be read")


def write_wordpiece(path: epath.Path, wordpiece: WordPiece, max_length: int) -> None:
    """Writes the files that `AutoTokenizer` reads, in its old and its new format.

    Args:
      path: local directory.
      wordpiece: vocabulary to write.
      max_length: tokens to which transformers truncates.
    """
    wordpiece.save(path)
    config = read_json(path / CONFIG_FILE) | SPECIAL_FIELDS | {"model_max_length": max_length}
    write_json(path / CONFIG_FILE, config)
    further = [token.content for token in wordpiece.added_tokens if token.special]
    fields = {"additional_special_tokens": further} if further else {}
    write_json(path / MAP_FILE, SPECIAL_FIELDS | fields)
    wordpiece.to_tokenizer().save(str(path / TOKENIZER_FILE))

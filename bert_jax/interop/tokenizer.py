"""Reads and writes the tokenizer files of Hugging Face."""

import dataclasses
import logging
import re
from dataclasses import dataclass
from typing import Any

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, processors

from bert_jax.data.added_tokens import MAP_FILE, AddedToken, with_added_tokens
from bert_jax.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, VOCAB_FILE, Tokenizer
from bert_jax.data.tokenizer_json import (
    JsonTokenizer,
    described_beside,
    load_tokenizer_json,
    parse_definition,
)
from bert_jax.data.wordpiece import (
    SPECIAL_TOKENS,
    UNK,
    TokenizerConfig,
    WordPiece,
    check_agrees,
    load_wordpiece,
    read_vocab,
)
from bert_jax.errors import UserError
from bert_jax.json_values import typed
from bert_jax.storage import read_json, write_json, write_text

_log = logging.getLogger(__name__)

WORDS_FILE, MERGES_FILE = "vocab.json", "merges.txt"  # RoBERTa's, older than tokenizer.json
MODEL_CONFIGS = ("config.json", "bert_config.json")  # of Hugging Face and Google
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


@dataclass(frozen=True)
class _Rows:
    """What the config of a model says of its vocabulary."""

    vocab_size: int | None = None


def read_tokenizer(
    path: epath.Path, *, lowercase: bool | None = None, strip_accents: bool | None = None
) -> Tokenizer:
    """The tokenizer of a directory or file, of any kind.

    Args:
      path: a tokenizer.json, a vocab.txt, or a local directory with one of them, with both, or with
        the older files of RoBERTa (vocab.json, merges.txt) or ESM (vocab.txt).
      lowercase: whether the vocabulary is uncased; required if no file says, else must agree.
      strip_accents: whether accents are dropped, if no file says; else must agree.

    Raises:
      UserError: there is no tokenizer, BERT cannot use it, or the files contradict each other or
        `lowercase`.
    """
    file = path
    if path.suffix != ".json" or path.is_dir():
        file = path / TOKENIZER_FILE
        if not file.exists():
            if older := _older_definition(path):
                return JsonTokenizer(older, described_beside(path))
            _check_special_tokens(path)
            return _without_blank_lines(
                load_wordpiece(path, lowercase=lowercase, strip_accents=strip_accents),
                path if path.is_dir() else path.parent,
            )
    fields = parse_definition(file)
    if file.name == TOKENIZER_FILE and _is_bert(file, fields):
        return _read_bert(file.parent, fields, lowercase=lowercase, strip_accents=strip_accents)
    tokenizer = load_tokenizer_json(file, lowercase=lowercase, strip_accents=strip_accents)
    config_file = file.parent / CONFIG_FILE
    if fields["model"]["type"] == "WordPiece" and config_file.exists():
        stated = read_json(config_file, TokenizerConfig).do_lower_case
        if stated not in (None, tokenizer.lowercase):
            raise UserError(
                f"{file.parent}: do_lower_case is {stated} in {CONFIG_FILE}, but {file.name} "
                f"{'lower-cases' if tokenizer.lowercase else 'keeps the case'}"
            )
    beside = file.parent / VOCAB_FILE
    if beside.exists():
        words = read_vocab(beside)
        while words and not words[-1]:
            words.pop()
        if tuple(words) != tokenizer.vocab[: len(words)]:
            raise UserError(f"{file.parent}: {VOCAB_FILE} and {file.name} differ in vocabulary")
    return tokenizer


def _without_blank_lines(tokenizer: WordPiece, folder: epath.Path) -> WordPiece:
    """Without blank lines at the end of a vocab.txt for which the model beside it has no rows."""
    for name in MODEL_CONFIGS:
        if (folder / name).exists():
            rows = read_json(folder / name, _Rows).vocab_size
            beyond = tokenizer.vocab[rows:]
            if rows and beyond and not any(beyond):
                _log.warning(
                    f"{folder / VOCAB_FILE}: {len(beyond)} blank lines at the end are left out, "
                    f"since the model has {rows:,} rows"
                )
                return dataclasses.replace(tokenizer, vocab=tokenizer.vocab[:rows])
    return tokenizer


def _is_bert(file: epath.Path, fields: dict[str, Any]) -> bool:
    """Whether a tokenizer.json describes what vocab.txt can: BERT's WordPiece."""
    return all(
        (fields[section] or {}).get(name) == value
        for section, required in REQUIRED.items()
        for name, value in required.items()
    )


def _read_bert(
    path: epath.Path,
    fields: dict[str, Any],
    *,
    lowercase: bool | None,
    strip_accents: bool | None,
) -> WordPiece:
    file, config_file = path / TOKENIZER_FILE, path / CONFIG_FILE
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
        if words[len(ids) :] and not any(words[len(ids) :]):  # blank lines at the end
            words = words[: len(ids)]
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


def _older_definition(path: epath.Path) -> str:
    """The tokenizer.json that the older files of a directory amount to; empty for those of BERT."""
    if (path / WORDS_FILE).exists() and (path / MERGES_FILE).exists():
        return _roberta(path)
    if (path / VOCAB_FILE).exists():
        words = read_vocab(path / VOCAB_FILE)
        if "<cls>" in words and not set(SPECIAL_TOKENS) & set(words):
            return _esm([word for word in words if word])
    return ""


def _roberta(path: epath.Path) -> str:
    """Byte-level BPE, with a pair of </s> between two texts."""
    config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).exists() else {}
    space = config.get("add_prefix_space") is True
    try:
        model = models.BPE.from_file(str(path / WORDS_FILE), str(path / MERGES_FILE))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path}: {WORDS_FILE} or {MERGES_FILE} is damaged ({error})") from error
    tokenizer = tokenizers.Tokenizer(model)
    ids = tokenizer.get_vocab()
    if missing := [token for token in ("<s>", "<pad>", "</s>", "<mask>") if token not in ids]:
        raise UserError(f"{path / WORDS_FILE}: {', '.join(missing)} missing")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=space
    )
    special = [token for token in ("<s>", "<pad>", "</s>", "<unk>") if token in ids]
    tokenizer.add_special_tokens([*special, tokenizers.AddedToken("<mask>", lstrip=True)])
    definition: str = tokenizer.to_str(pretty=True)
    return definition


def _esm(words: list[str]) -> str:
    """Whole characters, in which any token may be written; <eos> is what ends a text."""
    ids = {word: id_ for id_, word in enumerate(words)}
    special = [word for word in words if word.startswith("<")]
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokens = "|".join(re.escape(word) for word in words if word not in special)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(tokenizers.Regex(tokens), "isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>",
        pair="<cls> $A <eos> $B <eos>",
        special_tokens=[(token, ids[token]) for token in ("<cls>", "<eos>")],
    )
    tokenizer.add_special_tokens(special)
    definition: str = tokenizer.to_str(pretty=True)
    return definition


def write_tokenizer(path: epath.Path, tokenizer: Tokenizer, max_length: int) -> None:
    """Writes the files that `AutoTokenizer` reads; of WordPiece in the old and the new format.

    A tokenizer.json that was read is written byte for byte.

    Args:
      path: local directory.
      tokenizer: tokenizer to write.
      max_length: tokens to which transformers truncates.
    """
    tokenizer.save(path)
    config = read_json(path / CONFIG_FILE)
    if not isinstance(tokenizer, WordPiece):
        if "model_max_length" not in config:
            write_json(path / CONFIG_FILE, config | {"model_max_length": max_length})
        if config.get("tokenizer_class") == "EsmTokenizer":  # it reads only this
            write_text(path / VOCAB_FILE, "\n".join(tokenizer.vocab))
        return
    config = config | SPECIAL_FIELDS | {"model_max_length": max_length}
    write_json(path / CONFIG_FILE, config)
    further = [token.content for token in tokenizer.added_tokens if token.special]
    fields = {"additional_special_tokens": further} if further else {}
    write_json(path / MAP_FILE, SPECIAL_FIELDS | fields)
    write_text(path / TOKENIZER_FILE, tokenizer.to_tokenizer().to_str(pretty=True))

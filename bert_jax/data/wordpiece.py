"""WordPiece vocabularies: train, load, save, encode.

Hugging Face `tokenizers` normalises text, splits it into words and matches them longest-first as in
BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805; Schuster and Nakajima 2012). Files have
Hugging Face's format: `BertTokenizerFast.from_pretrained` reads what is saved here.
"""

import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from etils import epath
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bert_jax.errors import UserError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_FILE, CONFIG_FILE = "vocab.txt", "tokenizer_config.json"


@dataclass(frozen=True)
class WordPiece:
    """A vocabulary and how text is normalised before it is looked up.

    Attributes:
      vocab: token of each id.
      lowercase: whether the vocabulary is uncased.
      tokenize_chinese_chars: whether each CJK ideograph is a word.
      strip_accents: whether accents are dropped; None: exactly if `lowercase`, as in the original.

    Raises:
      UserError: the vocabulary lacks a special token or has a token twice.
    """

    vocab: tuple[str, ...]
    lowercase: bool
    tokenize_chinese_chars: bool = True
    strip_accents: bool | None = None

    def __post_init__(self) -> None:
        if missing := [token for token in SPECIAL_TOKENS if token not in self.vocab]:
            raise UserError(f"vocabulary: {', '.join(missing)} missing; is this a BERT vocabulary?")
        if len(self._ids) != len(self.vocab):
            token, times = Counter(self.vocab).most_common(1)[0]
            raise UserError(f"vocabulary: {token!r} occurs {times} times; tokens must be unique")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: id_ for id_, token in enumerate(self.vocab)}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(self._ids, unk_token=UNK))
        tokenizer.normalizer = normalizers.BertNormalizer(
            handle_chinese_chars=self.tokenize_chinese_chars,
            strip_accents=self.strip_accents,
            lowercase=self.lowercase,
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    @cached_property
    def _cut(self) -> re.Pattern[str]:
        """Splits text at some of the places where BERT does, never inside a word."""
        punctuation = r"!-/:-@\[-`{-~"
        ideographs = "\u3400-\u4dbf\u4e00-\u9fff" if self.tokenize_chinese_chars else ""
        return re.compile(rf"[^ \t\n\r{punctuation}{ideographs}]+|[{punctuation}{ideographs}]")

    @cached_property
    def _ids_of(self) -> "_Memo":
        return _Memo(self._tokenizer)

    @property
    def pad_id(self) -> int:
        return self._ids[PAD]

    @property
    def unk_id(self) -> int:
        return self._ids[UNK]

    @property
    def cls_id(self) -> int:
        return self._ids[CLS]

    @property
    def sep_id(self) -> int:
        return self._ids[SEP]

    @property
    def mask_id(self) -> int:
        return self._ids[MASK]

    @cached_property
    def special_ids(self) -> np.ndarray:
        """int32, ascending: special tokens and BERT's [unused...] ones, which no text has."""
        special = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK|unused\d+)\]")
        return np.array([i for i, t in enumerate(self.vocab) if special.fullmatch(t)], np.int32)

    @cached_property
    def is_continuation(self) -> np.ndarray:
        """bool [vocab_size]: whether the token continues a word ('##ing')."""
        return np.array([token.startswith("##") for token in self.vocab])

    @cached_property
    def vocab_hash(self) -> str:
        """sha256 of the two files that `save` writes."""
        return hashlib.sha256((self._vocab_text + self._config_text).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. No special token is added, and '[MASK]' in a text is plain text."""
        ids_of, cut = self._ids_of.__getitem__, self._cut.findall
        return [list(itertools.chain.from_iterable(map(ids_of, cut(text)))) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """Ids of a text, the same as from `encode`, and their positions in it.

        Returns:
          The ids, and int32 [n, 2] start and end: a token is `text[start:end]`, including marks
          after it that normalisation drops. Tokens of one character (Hangul) share its position.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = []
        for (start, end), (limit, _) in itertools.pairwise([*encoding.offsets, (len(text),) * 2]):
            while end < limit and unicodedata.category(text[end]) == "Mn":
                end += 1
            offsets.append((start, end))
        return encoding.ids, np.array(offsets, np.int32).reshape(-1, 2)

    def to_tokenizer(self) -> Tokenizer:
        """For Hugging Face `tokenizers`; adds [CLS] and [SEP], and '[MASK]' is a special token."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{CLS}:0 $A:0 {SEP}:0",
            pair=f"{CLS}:0 $A:0 {SEP}:0 $B:1 {SEP}:1",
            special_tokens=[(CLS, self.cls_id), (SEP, self.sep_id)],
        )
        return tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text, without the case, accents and spacing that `encode` dropped."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def save(self, directory: epath.PathLike) -> None:
        """Writes vocab.txt and tokenizer_config.json into `directory`."""
        (epath.Path(directory) / VOCAB_FILE).write_text(self._vocab_text, encoding="utf-8")
        (epath.Path(directory) / CONFIG_FILE).write_text(self._config_text, encoding="utf-8")

    @property
    def _vocab_text(self) -> str:
        return "".join(f"{token}\n" for token in self.vocab)

    @property
    def _config_text(self) -> str:
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "tokenize_chinese_chars": self.tokenize_chinese_chars,
            "strip_accents": self.strip_accents,
        }
        return json.dumps(config, indent=2) + "\n"


class _Memo(dict[str, list[int]]):
    """Cached ids of pieces of text: words repeat, so this is three times as fast as the tokenizer
    on whole sentences, with the same result."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def __missing__(self, text: str) -> list[int]:
        if len(self) == 200_000:  # about 50 MB
            self.clear()
        ids = self[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def load_wordpiece(path: epath.PathLike, *, lowercase: bool | None = None) -> WordPiece:
    """Loads a vocabulary from a folder with a vocab.txt, or from the file (one token per line).

    Args:
      path: as saved by `WordPiece.save` or Hugging Face, or any vocab.txt of BERT.
      lowercase: required if the tokenizer_config.json beside it does not say; otherwise it must
        agree.

    Raises:
      UserError: no such file, not a BERT vocabulary, or unknown or contradictory casing.
    """
    path = epath.Path(path)
    file = path / VOCAB_FILE if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{file}: no such vocabulary file")
    try:
        vocab = tuple(file.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8 text ({error}): it must hold one token per line"
        ) from error
    config_file = file.parent / CONFIG_FILE
    try:
        config = json.loads(config_file.read_text()) if config_file.exists() else {}
    except ValueError as error:
        raise UserError(f"{config_file}: not JSON ({error})") from error
    for name in ("do_lower_case", "tokenize_chinese_chars", "strip_accents"):
        if not isinstance(config, dict) or config.get(name) not in (None, True, False):
            raise UserError(f"{config_file}: must be an object whose {name} is true or false")
    configured: bool | None = config.get("do_lower_case")
    uncased = configured if lowercase is None else lowercase
    if uncased is None:
        raise UserError(
            f"{file}: cased or uncased? {CONFIG_FILE} does not say; pass --cased or --uncased"
        )
    if None not in (lowercase, configured) and lowercase != configured:
        raise UserError(f"{config_file}: do_lower_case is {configured}; the flag says the opposite")
    try:
        return WordPiece(
            vocab,
            lowercase=uncased,
            tokenize_chinese_chars=config.get("tokenize_chinese_chars") is not False,
            strip_accents=config.get("strip_accents"),
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


_MAX_COUNTED_PIECES = 5_000_000  # about a gigabyte
_MAX_TRAINING_WORDS = 50_000_000
_RAREST_CHARACTER = 5e-8  # share of the text


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, lowercase: bool = True) -> WordPiece:
    """Trains a vocabulary of at most `vocab_size` tokens by byte-pair merging.

    Ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK]; then come single characters, by falling
    frequency, and merges, in the order they were made. The same texts give the same vocabulary in
    any process. Memory is bounded: past five million different words, words seen once are dropped.

    Args:
      texts: read once.
      vocab_size: maximum size, reached if enough words occur twice.
      lowercase: lower-case the text and strip accents; otherwise text is left as it is.

    Raises:
      UserError: no text, or `vocab_size` leaves no room beside the special tokens.
    """
    if vocab_size < 2 * len(SPECIAL_TOKENS):
        raise UserError(f"vocab_size: {vocab_size} leaves no room for words; take 1000 or more")
    words = _count_words(texts, lowercase)
    if not words:
        raise UserError("no text to train a vocabulary on: check the sources")
    alphabet = _alphabet(words, vocab_size)
    # The trainer numbers the characters in the order of a randomly seeded hash table, and breaks
    # ties between merges by those numbers. Characters declared as special tokens keep our order.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        limit_alphabet=0,
        show_progress=False,
    )
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = {word: n for word, n in words.items() if set(word) <= set(alphabet)}
    # The trainer takes words, not counts. A large corpus would take hours without this cap.
    scale = -(-sum(known.values()) // _MAX_TRAINING_WORDS)
    repeated = itertools.chain.from_iterable(
        itertools.repeat(word, n // scale) for word, n in known.items()
    )
    tokenizer.train_from_iterator(
        iter(lambda: " ".join(itertools.islice(repeated, 1000)), ""), trainer
    )
    ids = tokenizer.get_vocab()
    return WordPiece(tuple(sorted(ids, key=ids.__getitem__)), lowercase)


def _count_words(texts: Iterable[str], lowercase: bool) -> Counter[str]:
    empty = WordPiece(SPECIAL_TOKENS, lowercase)
    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(empty._cut.findall(text))
        if len(pieces) > _MAX_COUNTED_PIECES:
            pieces = Counter({piece: n for piece, n in pieces.items() if n > 1})
    words: Counter[str] = Counter()
    for piece, n in pieces.items():
        normal = empty._tokenizer.normalizer.normalize_str(piece)
        for word, _ in empty._tokenizer.pre_tokenizer.pre_tokenize_str(normal):
            words[word] += n
    return words


def _alphabet(words: Counter[str], vocab_size: int) -> list[str]:
    """Characters of `words`, each followed by its '##' form where it was seen inside a word."""
    first: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for word, n in words.items():
        first[word[0]] += n
        for character in word[1:]:
            inside[character] += n
    counts = first + inside
    rarest = _RAREST_CHARACTER * counts.total()
    alphabet: list[str] = []
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        pieces = [character, f"##{character}"] if character in inside else [character]
        if counts[character] < rarest or len(alphabet) + len(pieces) > vocab_size // 2:
            break  # rarer ones become [UNK]; half of the vocabulary is left for merges
        alphabet += pieces
    return alphabet

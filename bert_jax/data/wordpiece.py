"""WordPiece vocabularies: train, load, save, encode.

Hugging Face `tokenizers` normalises text, splits it into words and matches them longest-first as in
BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805; Schuster and Nakajima 2012). Files have
Hugging Face's format: `BertTokenizerFast.from_pretrained` reads what is saved here.
"""

import dataclasses
import functools
import itertools
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bert_jax.data.added_tokens import AddedToken, read_added_tokens, with_added_tokens
from bert_jax.data.tokenizer import CONFIG_FILE, VOCAB_FILE, Encoded, Tokenizer, Word
from bert_jax.data.words import trimmed
from bert_jax.errors import UserError
from bert_jax.storage import read_json

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LOG = logging.getLogger(__name__)
_MAX_CACHED_CHARACTERS = 1000
# Unicode's spaces and tabs, not its line separators: bert-base-chinese has those as tokens.
_BLANKS = "\t\v\f" + "".join(c for c in map(chr, range(0x3001)) if unicodedata.category(c) == "Zs")
# Names of the marks that are accents or optional points. Others are parts of their letters.
_ACCENT = re.compile("(?!COMBINING KATAKANA)COMBINING|ARABIC|HEBREW|SYRIAC|VARIATION")


@dataclass(frozen=True)
class WordPiece(Tokenizer):
    """A vocabulary and how text is normalised before it is looked up.

    Attributes:
      vocab: token of each id. Of equal tokens the last is used, as in other loaders.
      lowercase: whether the vocabulary is uncased.
      tokenize_chinese_chars: whether each CJK ideograph is a word.
      strip_accents: whether accents are dropped; None: exactly if `lowercase`, as in the original.
      added_tokens: strings of `vocab` that are one token wherever they are in a text, by id.
      appended: number of them at the end of `vocab` that vocab.txt does not have.

    Raises:
      UserError: the vocabulary lacks a special token or has a line break in a token.
    """

    vocab: tuple[str, ...] = dataclasses.field(repr=False)
    lowercase: bool
    tokenize_chinese_chars: bool = True
    strip_accents: bool | None = None
    added_tokens: tuple[AddedToken, ...] = ()
    appended: int = 0

    def __post_init__(self) -> None:
        if missing := [token for token in SPECIAL_TOKENS if token not in self.vocab]:
            raise UserError(f"vocabulary: {', '.join(missing)} missing; is this a BERT vocabulary?")
        if broken := [token for token in self.vocab if "\n" in token or "\r" in token]:
            raise UserError(f"vocabulary: line break in {broken[0]!r}, which no vocab.txt can hold")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: id_ for id_, token in enumerate(self.vocab)}

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        words = len(self.vocab) - self.appended
        ids = {token: id_ for token, id_ in self._ids.items() if id_ < words}
        tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=UNK))
        tokenizer.normalizer = normalizers.BertNormalizer(
            handle_chinese_chars=self.tokenize_chinese_chars,
            strip_accents=self.strip_accents,
            lowercase=self.lowercase,
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        for token in self.added_tokens:
            add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
            fields = asdict(token)
            add([tokenizers.AddedToken(fields.pop("content"), **fields)])
        return tokenizer

    @cached_property
    def _cut(self) -> re.Pattern[str]:
        """Splits text at some of the places where BERT does, never inside a word."""
        punctuation = r"!-/:-@\[-`{-~"
        ideographs = "\u3400-\u4dbf\u4e00-\u9fff" if self.tokenize_chinese_chars else ""
        return re.compile(rf"[^ \t\n\r{punctuation}{ideographs}]+|[{punctuation}{ideographs}]")

    def _split(self, text: str) -> list[str]:
        """The words of normalised text."""
        return [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]

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
        special = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK|unused\d+)\]")
        added = {token.content for token in self.added_tokens if token.special}
        ids = [i for i, t in enumerate(self.vocab) if special.fullmatch(t) or t in added]
        return np.array(ids, np.int32)

    @property
    def description(self) -> str:
        casing = "uncased" if self.lowercase else "cased"
        if self.strip_accents not in (None, self.lowercase):
            casing += f", accents {'stripped' if self.strip_accents else 'kept'}"
        return f"{len(self.vocab):,} tokens, {casing}"

    @cached_property
    def files(self) -> dict[str, str]:
        return {VOCAB_FILE: self._vocab_text, CONFIG_FILE: self._config_text}

    @property
    def pieces_tell_words(self) -> bool:
        return True

    @cached_property
    def is_continuation(self) -> np.ndarray:
        return np.array([token.startswith("##") for token in self.vocab])

    @property
    def pieces(self) -> tuple[str, ...]:
        return self.vocab

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self.added_tokens:  # they may be anywhere, also across the cuts below
            encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encoded]
        ids_of, cut = self._ids_of.__getitem__, self._cut.findall
        return [list(itertools.chain.from_iterable(map(ids_of, cut(text)))) for text in texts]

    def unknown_words(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets)
        return [end - start for id_, (start, end) in spans if id_ == self.unk_id]

    def encode_marked(self, text: str) -> list[int]:
        ids: list[int] = self._marked.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        return self.to_tokenizer()

    def encode_with_offsets(self, text: str) -> Encoded:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Encoded(encoding.ids, trimmed(text, encoding.offsets))

    def encode_sentences(self, sentences: Sequence[str]) -> list[Encoded]:
        return [*map(self.encode_with_offsets, sentences)]

    def encode_words(self, words: Sequence[str]) -> list[Word]:
        return [Word(ids, 0) for ids in self.encode(words)]

    def to_tokenizer(self) -> tokenizers.Tokenizer:
        """For Hugging Face `tokenizers`; adds [CLS] and [SEP], and '[MASK]' is a special token."""
        tokenizer = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{CLS}:0 $A:0 {SEP}:0",
            pair=f"{CLS}:0 $A:0 {SEP}:0 $B:1 {SEP}:1",
            special_tokens=[(CLS, self.cls_id), (SEP, self.sep_id)],
        )
        return tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        used = [self._ids[self.vocab[i]] for i in ids]  # of equal tokens the library has one
        return self._tokenizer.decode(used, skip_special_tokens=False)

    @property
    def _vocab_text(self) -> str:
        words = self.vocab[: len(self.vocab) - self.appended]
        return "".join(f"{token}\n" for token in words)

    @property
    def _config_text(self) -> str:
        config: dict[str, Any] = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "tokenize_chinese_chars": self.tokenize_chinese_chars,
            "strip_accents": self.strip_accents,
        }
        if self.added_tokens:
            config["added_tokens_decoder"] = {
                str(self._ids[token.content]): asdict(token) for token in self.added_tokens
            }
        return json.dumps(config, indent=2) + "\n"


class _Memo(dict[str, list[int]]):
    """Cached ids of pieces of text: words repeat, so this is three times as fast as the tokenizer
    on whole sentences, with the same result."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self.tokenizer = tokenizer

    def __missing__(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if len(text) <= _MAX_CACHED_CHARACTERS:
            if len(self) == 200_000:  # about 50 MB
                self.clear()
            self[text] = ids
        return ids


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer_config.json may say, of Hugging Face's fields."""

    do_lower_case: bool | None = None
    tokenize_chinese_chars: bool | None = None
    strip_accents: bool | None = None
    added_tokens_decoder: dict[str, AddedToken] | None = None


def load_wordpiece(
    path: epath.PathLike, *, lowercase: bool | None = None, strip_accents: bool | None = None
) -> WordPiece:
    """Loads a vocabulary from a folder with a vocab.txt, or from the file (one token per line).

    Blanks around a token and a byte order mark are dropped. Of equal lines the last is used.

    Args:
      path: as saved by `Tokenizer.save` or Hugging Face, or any vocab.txt of BERT.
      lowercase: required if the tokenizer_config.json beside it does not say; otherwise it must
        agree.
      strip_accents: whether accents are dropped; must agree with tokenizer_config.json. None for
        what it says, or else exactly if the vocabulary is uncased.

    Raises:
      UserError: no such file, not a BERT vocabulary, or unknown or contradictory casing.
    """
    path = epath.Path(path)
    file = path / VOCAB_FILE if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{file}: no such vocabulary file")
    vocab = tuple(read_vocab(file))
    _warn_of_repeated(vocab, file)
    config_file = file.parent / CONFIG_FILE
    config = read_json(config_file, TokenizerConfig) if config_file.exists() else TokenizerConfig()
    if lowercase is None and config.do_lower_case is None:
        raise UserError(
            f"{file}: cased or uncased? No {CONFIG_FILE} says it. "
            'Write {"do_lower_case": true} (uncased) or false (cased) into one beside it; '
            "`bert-jax prepare` and `bert-jax convert` also take --uncased or --cased"
        )
    check_agrees(lowercase, config.do_lower_case, f"{config_file}: do_lower_case")
    strips = config.do_lower_case if config.strip_accents is None else config.strip_accents
    check_agrees(strip_accents, strips, f"{config_file}: strip_accents")
    uncased = bool(config.do_lower_case if lowercase is None else lowercase)
    new = strips is None and strip_accents is not None and strip_accents != uncased
    found = read_added_tokens(file.parent, config.added_tokens_decoder)
    words = len("\n".join(vocab).rstrip("\n").split("\n"))
    if any(id_ is not None and words <= id_ < len(vocab) for id_ in found.values()):
        vocab = vocab[:words]  # these follow the last word, so the blank lines are no tokens
    vocab, added, appended = with_added_tokens(vocab, found, SPECIAL_TOKENS, str(file))
    try:
        return WordPiece(
            vocab,
            lowercase=uncased,
            tokenize_chinese_chars=config.tokenize_chinese_chars is not False,
            strip_accents=strip_accents if new else config.strip_accents,
            added_tokens=added,
            appended=appended,
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def read_vocab(file: epath.Path) -> list[str]:
    """The lines of a vocab.txt, without blanks around them and byte order mark.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8 text ({error}): it must hold one token per line"
        ) from error
    lines = text.removeprefix("\ufeff").removesuffix("\n").split("\n")
    return [line.strip(_BLANKS) for line in lines]


def check_agrees(asked: bool | None, says: bool | None, place: str) -> None:
    """Raises UserError if a user asks for the opposite of what a file says."""
    if None not in (asked, says) and asked != says:
        raise UserError(f"{place} is {str(says).lower()}; the flag says the opposite")


def _warn_of_repeated(vocab: Sequence[str], file: epath.Path) -> None:
    repeated = [token for token, n in Counter(vocab).items() if n > 1 and token]
    if repeated:
        lines = [str(line) for line, token in enumerate(vocab, 1) if token == repeated[0]]
        _LOG.warning(
            f"{file}: {repeated[0]!r} stands in lines {' and '.join(lines)}, and the last one is "
            f"used; {len(repeated):,} such tokens in all"
        )


MAX_COUNTED_PIECES = 5_000_000  # about a gigabyte
_MAX_TRAINING_WORDS = 50_000_000
_RAREST_CHARACTER = 5e-8  # share of the text
_MAX_WORD_CHARACTERS = 100  # longer words are [UNK]
_LETTER_MARKS = 0.01  # share of words whose letters stripping would change, from which it is off


def train_wordpiece(
    texts: Iterable[str] | Counter[str],
    *,
    vocab_size: int,
    lowercase: bool = True,
    strip_accents: bool | None = None,
) -> WordPiece:
    """Trains a vocabulary of at most `vocab_size` tokens by byte-pair merging.

    Ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK]; then come single characters, by falling
    frequency, and merges, in the order they were made. Characters take up to half of the
    vocabulary, and all that merges leave. The same texts give the same vocabulary in any process.
    Memory is bounded: past five million different words, words seen once are dropped.

    Args:
      texts: read once; or how often each of their pieces occurs, as `count_pieces` says.
      vocab_size: maximum size, reached if enough words occur twice.
      lowercase: lower-case the text.
      strip_accents: drop accents. None: if `lowercase`, but not where they are parts of letters, as
        in Japanese and Hindi, in at least 1 % of the words.

    Raises:
      UserError: no text, or `vocab_size` leaves no room beside the special tokens.
    """
    if vocab_size < 2 * len(SPECIAL_TOKENS):
        raise UserError(f"vocab_size: {vocab_size} leaves no room for words; take 1000 or more")
    pieces = texts if isinstance(texts, Counter) else count_pieces(texts, find_pieces)
    if strip_accents is None and lowercase and _letters_have_marks(pieces):
        strip_accents = False
    if strip_accents == lowercase:
        strip_accents = None  # as the original has it
    empty = WordPiece(SPECIAL_TOKENS, lowercase, strip_accents=strip_accents)
    words = _count_words(pieces, empty)
    if not words:
        if pieces:
            raise UserError(
                f"every word has more than {_MAX_WORD_CHARACTERS} characters and would be [UNK]: "
                "put spaces between words, as a segmenter does"
            )
        raise UserError("no text to train a vocabulary on: check the sources")
    alphabet = _alphabet(words, vocab_size // 2)  # half of the vocabulary is left for merges
    vocab = _merge(words, alphabet, vocab_size)
    larger = _alphabet(words, len(alphabet) + vocab_size - len(vocab))
    if larger != alphabet:
        vocab = _merge(words, larger, vocab_size)
    return dataclasses.replace(empty, vocab=vocab)


def find_pieces(text: str) -> list[str]:
    """Pieces of a text, of one or more words each; they end where words end."""
    empty = _without_words()
    found = empty._cut.findall(text)
    if max(map(len, found), default=0) > _MAX_CACHED_CHARACTERS:  # text without blanks
        words = itertools.chain.from_iterable(map(empty._split, found))
        found = [word for word in words if len(word) <= _MAX_CACHED_CHARACTERS]
    return found


@functools.cache
def _without_words() -> WordPiece:
    return WordPiece(SPECIAL_TOKENS, lowercase=False)


def count_pieces(
    texts: Iterable[str], find: Callable[[str], Iterable[str]], before: Counter[str] | None = None
) -> Counter[str]:
    """How often each piece occurs; rare ones are dropped after a text with which they are too many.

    Args:
      texts: read once.
      find: gives the pieces of a text.
      before: counts of the texts before these.
    """
    pieces = Counter() if before is None else before
    for text in texts:
        pieces.update(find(text))
        if len(pieces) > MAX_COUNTED_PIECES:
            pieces = Counter({piece: n for piece, n in pieces.items() if n > 1})
    return pieces


def _letters_have_marks(pieces: Counter[str]) -> bool:
    """Whether stripping accents would change letters in many words; logs what is done if in any."""
    marked = {c for c in set().union(*pieces) if any(map(_is_letter_mark, _decomposed(c)))}
    found = [piece for piece in pieces if not marked.isdisjoint(piece)]
    if not found:
        return False
    share = sum(pieces[piece] for piece in found) / pieces.total()
    example = max(found, key=pieces.__getitem__)
    kept = share >= _LETTER_MARKS
    _LOG.warning(
        f"{share:.2%} of the words have marks that are parts of letters, not accents, such as "
        f"{example[:20]!r}. Accents are {'kept' if kept else 'stripped'}; "
        f"prepare --{'' if kept else 'no-'}strip-accents does the opposite"
    )
    return kept


def _decomposed(character: str) -> str:
    return unicodedata.normalize("NFD", character)


def _is_letter_mark(character: str) -> bool:
    """Whether it is a mark that accent stripping drops, but no accent: a vowel sign of Hindi."""
    return unicodedata.category(character) == "Mn" and not _ACCENT.match(
        unicodedata.name(character, "")
    )


def _count_words(pieces: Counter[str], empty: WordPiece) -> Counter[str]:
    words: Counter[str] = Counter()
    for piece, n in pieces.items():
        for word in empty._split(empty._tokenizer.normalizer.normalize_str(piece)):
            if len(word) <= _MAX_WORD_CHARACTERS:
                words[word] += n
    return words


def _merge(words: Counter[str], alphabet: Sequence[str], vocab_size: int) -> tuple[str, ...]:
    """Special tokens, `alphabet`, and merges as long as there is room and a pair occurs twice."""
    # The trainer numbers the characters in the order of a randomly seeded hash table, and breaks
    # ties between merges by those numbers. Characters declared as special tokens keep our order.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        limit_alphabet=0,
        show_progress=False,
    )
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    characters = set(alphabet)
    known = {word: n for word, n in words.items() if characters.issuperset(word)}
    tokenizer.train_from_iterator(repeated_words(known), trainer)
    ids = tokenizer.get_vocab()
    return tuple(sorted(ids, key=ids.__getitem__))


def repeated_words(words: Mapping[str, int]) -> Iterator[str]:
    """Lines for a trainer, which takes words and not counts, with each word as often as it occurs.

    A large corpus would take hours, so beyond a bound all words are repeated less often.
    """
    scale = -(-sum(words.values()) // _MAX_TRAINING_WORDS)
    repeated = itertools.chain.from_iterable(
        itertools.repeat(word, n // scale) for word, n in words.items()
    )
    return iter(lambda: " ".join(itertools.islice(repeated, 1000)), "")


def frequent_characters(counts: Counter[str], room: int) -> set[str]:
    """The commonest characters, at most `room`, without those that are very rare."""
    rarest = _RAREST_CHARACTER * counts.total()
    order = sorted(counts, key=lambda c: (-counts[c], c))[:room]
    return {character for character in order if counts[character] >= rarest}


def _alphabet(words: Counter[str], room: int) -> list[str]:
    """Commonest characters of `words`, each followed by its '##' form if seen inside a word."""
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
        if counts[character] < rarest or len(alphabet) + len(pieces) > room:
            break  # rarer ones become [UNK]
        alphabet += pieces
    return alphabet

"""Trains tokenizers of every kind on a corpus.

The same texts give the same tokenizer in any process and with any number of threads.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bert_jax.data import tokenizer
from bert_jax.data.tokenizer_json import JsonTokenizer
from bert_jax.data.wordpiece import (
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    count_pieces,
    find_pieces,
    frequent_characters,
    repeated_words,
    train_wordpiece,
)
from bert_jax.errors import UserError

_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_SMALLEST = {"bpe": len(SPECIAL_TOKENS) + len(_BYTES) + 1}
_MAX_WORD_CHARACTERS = 1000  # longer ones, without spaces in them, teach nothing


def train_tokenizer(
    kind: str,
    texts: Iterable[str] | Counter[str],
    *,
    vocab_size: int,
    lowercase: bool | None = None,
    strip_accents: bool | None = None,
) -> tokenizer.Tokenizer:
    """Trains a tokenizer of at most `vocab_size` tokens, the first of them BERT's special ones.

    Args:
      kind: one of `bert_jax.data.limits.TOKENIZERS`: "wordpiece", see `train_wordpiece`; "bpe",
        byte-level as in ModernBERT, which knows every text; "unigram" (Kudo 2018,
        https://arxiv.org/abs/1804.10959); "characters", where each is a token, and so is a space.
      texts: read once; or how often each of their pieces occurs: `count_pieces` with what
        `finds_pieces` gives for this kind.
      vocab_size: maximum size, reached if enough words occur twice.
      lowercase: lower-case the text. None: only for "wordpiece".
      strip_accents: drop accents. None: as `train_wordpiece` does; for other kinds not.

    Raises:
      UserError: no text, or `vocab_size` leaves no room beside what every vocabulary has.
    """
    if kind == "wordpiece":
        return train_wordpiece(
            texts,
            vocab_size=vocab_size,
            lowercase=lowercase is not False,
            strip_accents=strip_accents,
        )
    if vocab_size < (least := _SMALLEST.get(kind, 2 * len(SPECIAL_TOKENS))):
        raise UserError(f"vocab_size: {vocab_size} leaves no room for words; take {least} or more")
    normalizer = _normalizer(kind, bool(lowercase), bool(strip_accents))
    counts = texts if isinstance(texts, Counter) else count_pieces(texts, finds_pieces(kind))
    words = _normalized(counts, normalizer)
    if not words:
        raise UserError("no text to train a vocabulary on: check the sources")
    train = {"bpe": _train_bpe, "unigram": _train_unigram, "characters": _train_characters}[kind]
    trained = train(words, vocab_size)
    trained.normalizer = normalizer
    # A token for a word takes the space before it, one for a character does not.
    mask = AddedToken(MASK, lstrip=kind != "characters")
    trained.add_special_tokens([PAD, UNK, CLS, SEP, mask])
    trained.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, trained.token_to_id(token)) for token in (CLS, SEP)],
    )
    return JsonTokenizer(trained.to_str(pretty=True) + "\n")


def _normalizer(kind: str, lowercase: bool, strip_accents: bool) -> normalizers.Sequence:
    steps = [normalizers.NFD(), normalizers.StripAccents()] if strip_accents else []
    steps += [normalizers.Lowercase()] if lowercase else []
    last = normalizers.NFKC() if kind == "unigram" else normalizers.NFC()
    return normalizers.Sequence([*steps, last])


def finds_pieces(kind: str) -> Callable[[str], list[str]]:
    """What gives the pieces of a text that a tokenizer of a kind is trained on."""
    return find_pieces if kind == "wordpiece" else _words


def _words(text: str) -> list[str]:
    return [word for word in text.split() if len(word) <= _MAX_WORD_CHARACTERS]


def _normalized(words: Counter[str], normalizer: normalizers.Normalizer) -> Counter[str]:
    found: Counter[str] = Counter()
    for word, n in words.items():
        for part in normalizer.normalize_str(word).split():
            found[part] += n
    return found


def _train_bpe(words: Counter[str], vocab_size: int) -> Tokenizer:
    # As in the text: a word with the space before it.
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces: Counter[str] = Counter()
    for word, n in words.items():
        for piece, _ in cut.pre_tokenize_str(f" {word}"):
            pieces[piece] += n
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=_BYTES,
        show_progress=False,
    )
    trained.train_from_iterator(repeated_words(pieces), trainer)
    trained.pre_tokenizer, trained.decoder = cut, decoders.ByteLevel()
    return trained


def _train_unigram(words: Counter[str], vocab_size: int) -> Tokenizer:
    characters = frequent_characters(_count_characters(words), vocab_size // 2)
    known = Counter({word: n for word, n in words.items() if characters.issuperset(word)})
    trained = Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        unk_token=UNK,
        show_progress=False,
    )
    trained.train_from_iterator(repeated_words(known), trainer)
    vocab = json.loads(trained.to_str())["model"]["vocab"]
    final = Tokenizer(models.Unigram(_canonical(vocab), unk_id=SPECIAL_TOKENS.index(UNK)))
    # Only the first word of a text gets a space that is not there: not one after [MASK].
    final.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    final.decoder = decoders.Metaspace(prepend_scheme="first")
    return final


def _canonical(vocab: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The tokens in an order, and with scores, that do not depend on threads and hash tables.

    The trainer adds up numbers in a random order, which shows beyond the tenth digit, and gives the
    characters that it must keep the least score, plus 0.0001 for each in a random order.
    """
    scores = {token: score for token, score in vocab if token not in SPECIAL_TOKENS}
    least = min(scores.values(), default=0.0)
    kept = least + 0.0001 * (len(scores) + 1)
    rounded = {
        token: round(least if len(token) == 1 and score <= kept else score, 3)
        for token, score in scores.items()
    }
    order = sorted(rounded, key=lambda token: (-rounded[token], token))
    return [*((token, 0.0) for token in SPECIAL_TOKENS), *((t, rounded[t]) for t in order)]


def _train_characters(words: Counter[str], vocab_size: int) -> Tokenizer:
    counts = _count_characters(words)
    counts[" "] = words.total()
    kept = frequent_characters(counts, vocab_size - len(SPECIAL_TOKENS))
    order = sorted(kept, key=lambda character: (-counts[character], character))
    ids = {token: id_ for id_, token in enumerate((*SPECIAL_TOKENS, *order))}
    trained = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    trained.decoder = decoders.Fuse()
    return trained


def _count_characters(words: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for word, n in words.items():
        for character in word:
            counts[character] += n
    return counts

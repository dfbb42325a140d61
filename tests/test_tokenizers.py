"""Tokenizers of all kinds: ids, places, words, training, and stores that know the words."""

import copy
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from configured import configured
from etils import epath
from tokenizers import Regex, models, pre_tokenizers, trainers

from bert_jax.__main__ import main
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.store import open_token_store, verify_store
from bert_jax.data.store_writer import write_store
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.tokenizer_json import JsonTokenizer, load_tokenizer
from bert_jax.data.train_tokenizer import train_tokenizer
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.data.words import continues
from bert_jax.errors import UserError
from bert_jax.objective.masking import mask_tokens
from bert_jax.tasks import AnsweringTask, TaggingTask
from bert_jax.tasks.answering.example import Question
from bert_jax.tasks.features import pair_ids
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.plain_text import split_words

TRAINED = {"bpe": 500, "unigram": 400, "characters": 100}
TEXTS = (
    "The 3rd State (of the Union), as Mr. O'Neil said: \"don't\" -- co-operate!",
    "  Two  spaces,\ttabs and naïve café CAFE\u0301 ﬁne ½ ",
    "unknown: 中文字 🙂 ดี",
    "</s> [MASK] <s> and [CLS] are plain text",
    "x",
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*itertools.islice(read_documents(find_sources(["corpus:sotu"])), 8)]


@pytest.fixture(scope="module")
def kinds(texts) -> dict[str, Tokenizer]:
    """A tokenizer of every kind: those that `prepare` trains, and some of other origin."""
    found = {kind: train_tokenizer(kind, texts, vocab_size=n) for kind, n in TRAINED.items()}
    bpe = json.loads(found["bpe"].definition)
    # RoBERTa's: other spellings, and a pair of </s> between two texts.
    names = dict(zip(SPECIAL_TOKENS, ("<pad>", "<unk>", "<s>", "</s>", "<mask>")))
    spelled = copy.deepcopy(bpe)
    spelled["model"]["vocab"] = {names.get(t, t): i for t, i in bpe["model"]["vocab"].items()}
    spelled["added_tokens"] = [t | {"content": names[t["content"]]} for t in bpe["added_tokens"]]
    spelled["pre_tokenizer"]["add_prefix_space"] = True
    spelled["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": ["</s>", 3],
        "cls": ["<s>", 2],
        "trim_offsets": True,
        "add_prefix_space": True,
    }
    found["roberta"] = JsonTokenizer(json.dumps(spelled))
    # Pieces of words without any mark, as in the library's tutorial.
    plain = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=list(SPECIAL_TOKENS), show_progress=False
        ),
    )
    found["unmarked"] = JsonTokenizer(plain.to_str())
    return found


KINDS = (*TRAINED, "roberta", "unmarked")


def library(tokenizer: JsonTokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer.definition)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_library(kinds, kind, tmp_path):
    """With and without special tokens, of texts and pairs, before and after a file."""
    tokenizer = kinds[kind]
    tokenizer.save(tmp_path)
    again, theirs = load_tokenizer(epath.Path(tmp_path)), library(tokenizer)
    assert again == tokenizer
    assert again.vocab_hash == tokenizer.vocab_hash
    assert (tmp_path / "tokenizer.json").read_text() == tokenizer.definition
    names = ("pad", "unk", "cls", "sep", "mask")
    ids = [getattr(tokenizer, f"{name}_id") for name in names]
    assert ids == [0, 1, 2, 3, 4]
    assert tokenizer.special_ids.tolist() == ids
    plain = [text for text in TEXTS if "</s>" not in text]
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in plain]
    assert again.encode(plain) == expected
    assert [again.encode_with_offsets(text).ids for text in plain] == expected
    a, b = expected[:2]
    found, b_start, _ = pair_ids(again, a, b, 512)
    if kind == "unmarked":  # nothing is put around a text
        assert found.tolist() == [2, *a, 3, *b, 3]
    else:
        pair = theirs.encode(*plain[:2])
        assert found.tolist() == pair.ids
        assert pair.sequence_ids.index(1) == b_start


@pytest.mark.parametrize("kind", KINDS)
def test_spellings_of_special_tokens_are_text(kinds, kind):
    tokenizer = kinds[kind]
    mask = tokenizer.vocab[tokenizer.mask_id]
    text = f"the {mask} of{mask}."
    special = set(tokenizer.special_ids.tolist()) - {tokenizer.unk_id}
    (ids,) = tokenizer.encode([text])
    assert not special & set(ids)
    marked = tokenizer.encode_marked(text)
    assert marked == library(tokenizer).encode(text, add_special_tokens=False).ids
    assert marked.count(tokenizer.mask_id) == 2


def words_of(text: str, offsets: np.ndarray, joined: np.ndarray) -> list[tuple[int, int]]:
    spans = []
    for (start, end), more in zip(offsets.tolist(), joined):
        if more:
            start, end = spans.pop()[0], max(end, start)
        spans.append((start, end))
    return [span for span in spans if span[0] < span[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_bert(kinds, kind):
    """The words that BERT splits a text into, whatever the pieces; no white space in a token."""
    for text in TEXTS[:3]:
        _, offsets = kinds[kind].encode_with_offsets(text)
        assert not any(c.isspace() for a, b in offsets for c in text[a:b])
        found = words_of(text, offsets, continues(text, offsets))
        bert = pre_tokenizers.Sequence(
            [
                pre_tokenizers.BertPreTokenizer(),
                pre_tokenizers.Split(Regex("[\u4e00-\u9fff]"), "isolated"),
            ]
        )
        expected = [span for _, span in bert.pre_tokenize_str(text)]
        if kind in ("unigram", "unmarked", "characters"):  # what is unknown is one token
            words = kinds[kind].encode([text[slice(*span)] for span in expected])
            pairs = zip(expected, words)
            known = [span for span, ids in pairs if kinds[kind].unk_id not in ids]
            assert [span for span in found if span in known] == known
        else:
            assert found == expected


def test_a_segmenter_joins_ideographs():
    vocab = (*SPECIAL_TOKENS, *"我爱北京天安门,a", "##b")
    tokenizer = WordPiece(vocab, lowercase=True)
    text = "我爱北京天安门, ab"
    _, offsets = tokenizer.encode_with_offsets(text)
    assert continues(text, offsets).tolist() == [False] * 9 + [True]

    def segment(text):
        return ["我", "爱", "北京", "天安门", ",", " ", "ab"]

    expected = [False, False, False, True, False, True, True, False, False, True]
    assert continues(text, offsets, segment).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_tags_and_answers_are_at_the_right_characters(kinds, kind):
    tokenizer = kinds[kind]
    words = ["The", "Congress", "(", "of", "1790", ")", "met", "."]
    tags = ["O", "B-ORG", "O", "O", "B-DATE", "O", "O", "O"]
    task = TaggingTask().with_labels(("O", "B-ORG", "B-DATE"))
    features = task.features([Sentence(words, tags, "here")], tokenizer, 64)
    (ids,), (word_of,) = features.input_ids, features.words
    at = np.flatnonzero(word_of >= 0)
    assert word_of[at].tolist() == list(range(len(words)))
    # The piece at which a tag is predicted has the first characters of its word.
    for word, piece in zip(words, (tokenizer.pieces[i] for i in ids[at])):
        assert piece.strip()
        assert word.startswith(piece.strip())
    if kind != "unmarked":
        assert tokenizer.decode(ids[1:-1]).split() == words
    # A word has the same pieces wherever it is.
    (first,) = tokenizer.encode_words(["Congress"])
    assert tokenizer.encode_words(["the", "Congress"])[1] == first

    context = "  They said: (Congress) met in New  York, 1790."
    for answer in ("Congress", "New  York", "1790", "They"):
        start = context.index(answer)
        question = Question("1", "Who met?", context, ((answer, start),))
        features = AnsweringTask().features([question], tokenizer, 384)
        first, last = features.labels[0] - features.b_start[0]
        offsets = features.offsets[0]
        assert context[offsets[first, 0] : offsets[last, 1]] == answer
    text = "In (New York), Ada's dog."
    assert [text[slice(*span)] for span in split_words(tokenizer, text)] == [
        *("In", "(", "New", "York", ")", ",", "Ada", "'s", "dog", "."),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_of_whole_words(kinds, kind, texts, tmp_path):
    """In the batches of a store, made by one process or several."""
    tokenizer = kinds[kind]
    store = write_store(tmp_path / "store", texts[:4], tokenizer, heldout_bound=0.4, provenance={})
    # The tokens of a document are those of its text, in which a space is between two sentences.
    config = configured(
        **{"model.vocab_size": len(tokenizer.vocab), "data.store": store.path},
        **{"data.pairs": "none", "data.max_seq_length": 64, "data.batch_size": 16},
        **{"masking": "whole_word", "masking.max_predictions_per_seq": 60},
    )
    batches = store.training_batches(config.data, seed=0, host_rows=np.arange)
    batch = batches.batch(0)
    masked = mask_tokens(batch, config.bound_masking(tokenizer), jax.random.key(0))
    predicted = np.zeros(batch["input_ids"].shape, bool)
    rows, slots = np.nonzero(np.asarray(masked["masked_lm_weights"]))
    predicted[rows, np.asarray(masked["masked_lm_positions"])[rows, slots]] = True
    joined = batch["continues"][:, 1:] > 0
    joined &= ~np.isin(batch["input_ids"][:, :-1], tokenizer.special_ids)
    assert joined.mean() > 0.05
    assert (predicted[:, 1:] == predicted[:, :-1])[joined].all()
    assert predicted.sum() > 50
    # Pieces that continue a word never follow white space, as what they decode to shows.
    letters = [tokenizer.pieces[i] for i in batch["input_ids"][:, 1:][joined]]
    if kind in ("bpe", "roberta"):
        assert not any(piece.startswith(" ") for piece in letters if piece.strip())


def test_stores_are_the_same_for_any_number_of_workers(kinds, texts, tmp_path):
    stores = [
        write_store(
            tmp_path / str(workers),
            texts,
            kinds["bpe"],
            heldout_bound=0.3,
            workers=workers,
            provenance={},
        )
        for workers in (1, 2)
    ]
    one, two = (store.path for store in stores)
    files = sorted(path.relative_to(one) for path in Path(one).rglob("*") if path.is_file())
    assert Path("train/continues.bin") in files
    for file in files:
        assert (Path(one) / file).read_bytes() == (Path(two) / file).read_bytes()
    # Bit for bit what the sentences give: the first sentence without a space before it.
    split = stores[0].train
    bits = np.unpackbits(split.continues, bitorder="little")[: len(split.tokens)].astype(bool)
    assert split.num_words(kinds["bpe"].is_continuation) == (~bits).sum()
    pieces = [kinds["bpe"].pieces[i] for i in split.tokens]
    starts = split.sentences[:-1]
    assert not bits[starts].any()
    first = set(split.sentences[split.documents[:-1]].tolist())
    for start in starts.tolist():
        assert pieces[start].startswith(" ") == (start not in first)

    file = Path(one) / "train" / "continues.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"train/continues\.bin: content changed"):
        open_token_store(one)
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"train/continues\.bin: has [\d,]+ bytes"):
        verify_store(one)
    (Path(two) / "tokenizer.json").write_text(kinds["unigram"].definition)
    with pytest.raises(UserError, match="not the one that the tokens were made with"):
        open_token_store(two)


def test_training_depends_on_neither_threads_nor_hash_seeds(kinds, texts):
    code = (
        "import sys, json; from bert_jax.data.train_tokenizer import train_tokenizer\n"
        f"texts, kinds = json.load(sys.stdin), {TRAINED}\n"
        "for kind, n in kinds.items():\n"
        "    print(train_tokenizer(kind, texts, vocab_size=n).vocab_hash)"
    )
    environment = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    assert done.stdout.split() == [kinds[kind].vocab_hash for kind in TRAINED]


def test_what_is_trained(kinds, texts):
    bpe, unigram, characters = (kinds[kind] for kind in TRAINED)
    assert [len(kinds[kind].vocab) for kind in ("bpe", "unigram")] == [500, 400]
    assert {" the", " of", "ing"} <= set(bpe.pieces) & set(unigram.pieces)
    assert {" ", "e", "."} <= set(characters.pieces)
    assert {len(piece) for piece in characters.pieces[5:]} == {1}
    assert bpe.unknown_words("中文 \x00") == []
    assert unigram.unknown_words("a 中文 b") == [2]
    assert characters.unknown_words("a 中文") == [1, 1]
    assert [each.description for each in (bpe, unigram, characters)] == [
        "500 tokens, byte-level BPE, cased",
        "400 tokens, Unigram, cased",
        f"{len(characters.vocab)} tokens, characters, cased",
    ]
    for kind in TRAINED:
        assert kinds[kind].decode(kinds[kind].encode(["of the people"])[0]) == "of the people"
    uncased = train_tokenizer("bpe", texts[:2], vocab_size=300, lowercase=True, strip_accents=True)
    assert uncased.encode(["ÉTÉ"]) == uncased.encode(["ete"])
    assert uncased.description == "300 tokens, byte-level BPE, uncased"
    for kind in TRAINED:
        with pytest.raises(UserError, match=r"vocab_size: 9 leaves no room for words; take \d+"):
            train_tokenizer(kind, texts, vocab_size=9)


def test_residues_are_words():
    """Without a token for white space, as for proteins, each character is a word."""
    ids = {token: id_ for id_, token in enumerate((*SPECIAL_TOKENS, *"ACDEFGHIKLMNPQRSTVWY"))}
    theirs = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    theirs.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = JsonTokenizer(theirs.to_str())
    assert tokenizer.pieces_tell_words
    assert not tokenizer.is_continuation.any()
    assert tokenizer.encode_sentences(["MKV", "LAA"])[1].ids == [ids[c] for c in "LAA"]


BROKEN = {
    "no mask": (lambda fields: fields["model"]["vocab"].pop("[MASK]"), "no mask_token: name"),
    "damaged": (lambda fields: fields.pop("model"), "not a tokenizer"),
    "a huge id": (
        lambda fields: fields["model"]["vocab"].update(a=2**31),
        "a token has the id 2,147,483,648, beyond any vocabulary",
    ),
    "an id twice": (
        lambda fields: fields["model"]["vocab"].update(a=fields["model"]["vocab"]["b"]),
        r"'[ab]' and '[ab]' have the same id \d+",
    ),
    "two at the end": (
        lambda fields: fields["post_processor"]["single"].append(
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
        ),
        r"puts \[CLS\] text \[SEP\] \[SEP\]: only one token",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_bert_cannot_use_is_refused(name, kinds, tmp_path, capsys):
    change, message = BROKEN[name]
    fields = json.loads(kinds["bpe"].definition)
    if name == "no mask":
        fields["added_tokens"] = [t for t in fields["added_tokens"] if t["content"] != "[MASK]"]
    change(fields)
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"tokenizer\.json: {message}"):
        load_tokenizer(epath.Path(tmp_path))


def test_roles_are_read_from_the_files_beside(kinds, tmp_path):
    """Of a tokenizer.json that puts nothing around texts, and spells its tokens in its own way."""
    fields = json.loads(kinds["bpe"].definition)
    text = json.dumps(fields | {"post_processor": None}).replace("[MASK]", "<fill>")
    (tmp_path / "tokenizer.json").write_text(text.replace("[CLS]", "<begin>"))
    with pytest.raises(UserError, match="no cls_token, mask_token: name"):
        load_tokenizer(epath.Path(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<begin>"}')
    map_file = tmp_path / "special_tokens_map.json"
    map_file.write_text('{"mask_token": {"content": "<fill>", "lstrip": true}}')
    tokenizer = load_tokenizer(epath.Path(tmp_path))
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (2, 3, 4)
    map_file.write_text('{"mask_token": ["<fill>"]}')
    with pytest.raises(UserError, match=r"mask_token is \['<fill>'\], which is not a token"):
        load_tokenizer(epath.Path(tmp_path))
    map_file.unlink()
    tokenizer.save(tmp_path)
    assert load_tokenizer(epath.Path(tmp_path)) == tokenizer


def test_prepare_takes_a_kind_a_file_or_a_folder(kinds, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"One day {n} men met. They sat." for n in range(40)))
    run = ["prepare", str(corpus), "--workers=1"]
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    assert main([*run, "--output", one, "--tokenizer=bpe", "--vocab-size=280"]) == 0
    out = capsys.readouterr().out
    assert "vocabulary: 280 tokens, byte-level BPE, cased" in out
    assert main([*run, "--output", two, f"--tokenizer={one}"]) == 0
    assert main([*run, "--output", three, f"--tokenizer={one}/tokenizer.json"]) == 0
    assert main([*run, "--output", three, f"--vocab={one}"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    stores = [open_token_store(path) for path in (one, two, three)]
    assert len({store.fingerprint for store in stores}) == 1
    assert main([*run, "--output", one, "--vocab-size=280"]) == 2
    assert "--tokenizer (bpe there, None now)" in capsys.readouterr().err
    for wrong, message in (
        (["--tokenizer=bpe", "--vocab=x"], "--vocab: not allowed with a kind"),
        ([f"--tokenizer={one}", "--vocab-size=9"], "--vocab-size: not allowed with a path"),
    ):
        with pytest.raises(SystemExit):
            main([*run, "--output", str(tmp_path / "no"), *wrong])
        assert message in capsys.readouterr().err
    for wrong, message in (
        (["--tokenizer=bpee"], "--tokenizer=bpee: neither wordpiece, bpe"),
        (["--segmenter=none"], "segmenter='none': cannot be imported"),
        ([f"--tokenizer={one}", "--uncased"], "lower-casing is false; the flag says the opposite"),
    ):
        assert main([*run, "--output", str(tmp_path / "no"), *wrong]) == 2
        assert message in capsys.readouterr().err


def test_words_of_chinese(tmp_path, capsys, monkeypatch):
    """Each character is one, and a line says so; with a segmenter they are its words."""
    (tmp_path / "pairs_of.py").write_text(
        "def characters(text):\n    return [text[i:i + 2] for i in range(0, len(text), 2)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"甲乙丙丁{c}庚。" for c in "戊己辛壬癸子丑寅"), encoding="utf-8")
    run = ["prepare", str(corpus), "--vocab-size=40", "--workers=1"]
    assert main([*run, "--output", str(tmp_path / "alone")]) == 0
    assert "words of Chinese: each character is one" in capsys.readouterr().out
    assert open_token_store(tmp_path / "alone").train.continues is None
    segmenter = "--segmenter=pairs_of:characters"
    assert main([*run, "--output", str(tmp_path / "joined"), segmenter]) == 0
    assert "those of pairs_of:characters" in capsys.readouterr().out
    alone, joined = (open_token_store(tmp_path / name).train for name in ("alone", "joined"))
    np.testing.assert_array_equal(alone.tokens, joined.tokens)
    bits = np.unpackbits(joined.continues, bitorder="little")[: len(joined.tokens)]
    np.testing.assert_array_equal(bits.reshape(-1, 7), [[0, 1, 0, 1, 0, 1, 0]] * (len(bits) // 7))


def test_jieba_cuts_chinese():
    pytest.importorskip("jieba")
    from bert_jax.data.words import load_segmenter

    assert list(load_segmenter("jieba")("我爱北京天安门")) == ["我", "爱", "北京", "天安门"]

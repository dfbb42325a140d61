"""The token store: content, determinism, the held-out rule, and damage of every kind."""

import itertools
import json
import shutil

import numpy as np
import pytest

from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.sentences import split_sentences
from bert_jax.data.store import (
    document_hash,
    heldout_bound,
    open_token_store,
    verify_store,
    write_store,
)
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece, train_wordpiece
from bert_jax.errors import UserError

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def documents():
    return list(read_documents(find_sources(["corpus:sotu"])))


@pytest.fixture(scope="module")
def wordpiece(documents):
    return train_wordpiece(documents, vocab_size=3000)


@pytest.fixture(scope="module")
def store(documents, wordpiece, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "sotu"
    return write_store(
        path, [*documents[:100], "", "\x00"], wordpiece, heldout_bound=0.1, provenance={"a": 1}
    )


@pytest.fixture
def copy(store, tmp_path):
    return shutil.copytree(store.path, tmp_path / "copy")


def test_holds_every_sentence_in_order(store, documents, wordpiece):
    for split, keep in (
        (store.train, lambda text: document_hash(text) >= 0.1),
        (store.heldout, lambda text: document_hash(text) < 0.1),
    ):
        expected = [split_sentences(text) for text in documents[:100] if keep(text)]
        assert len(split.documents) == len(expected) + 1 > 2
        for index, sentences in enumerate(expected):
            first, last = split.documents[index : index + 2]
            assert last - first == len(sentences)
            spans = split.sentences[first : last + 1]
            ids = [split.tokens[a:b].tolist() for a, b in itertools.pairwise(spans)]
            assert ids == wordpiece.encode(sentences)
        assert split.sentences[-1] == len(split.tokens)
        assert split.documents[-1] == len(split.sentences) - 1
        counts = np.bincount(split.tokens, minlength=len(wordpiece.vocab))
        np.testing.assert_array_equal(split.token_counts, counts)
        assert (split.tokens.dtype, split.sentences.dtype) == (np.uint16, np.int64)
    assert store.manifest["empty_documents"] == 2
    assert store.manifest["a"] == 1
    assert store.wordpiece == wordpiece


def test_same_bytes_for_any_number_of_workers(tmp_path, documents, wordpiece):
    trees = []
    for workers in (1, 2, 3):
        path = tmp_path / str(workers)
        write_store(
            path, documents[:150], wordpiece, heldout_bound=0.1, workers=workers, provenance={}
        )
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        assert len(files) == 11
        trees.append({file.relative_to(path): file.read_bytes() for file in files})
    assert trees[0] == trees[1] == trees[2]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "2", "3"]


def test_large_vocabulary_takes_four_bytes(tmp_path):
    vocab = (*SPECIAL_TOKENS, *map(chr, range(0x4E00, 0x9FFF)), *(f"w{i}" for i in range(50_000)))
    path = tmp_path / "store"
    store = write_store(
        path, ["w1 w49999"], WordPiece(vocab, True), heldout_bound=0.0, provenance={}
    )
    assert store.train.tokens.dtype == np.uint32
    assert [vocab[i] for i in store.train.tokens] == ["w1", "w49999"]
    assert len(store.heldout.tokens) == 0
    assert store.heldout.sentences.tolist() == store.heldout.documents.tolist() == [0]


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_small_corpora_have_two_documents_in_each_split(count, share):
    texts = [f"{share} document {index}" for index in range(count)]
    bound = heldout_bound([*texts, *texts[:2], "", " "], share)  # copies and blanks do not count
    held_out = sum(document_hash(text) < bound for text in texts)
    assert held_out >= min(2, count // 2)
    assert count - held_out >= min(2, count - count // 2)
    assert bound == heldout_bound(reversed(texts), share)


def test_share_decides_in_a_large_corpus():
    texts = [str(index) for index in range(20_000)]
    assert heldout_bound(texts, 0.05) == 0.05
    read = []
    heldout_bound((read.append(text) or text for text in texts), 0.05)
    assert len(read) < 500, "a stream is read no further than needed"
    held_out = np.mean([document_hash(text) < 0.05 for text in texts])
    assert held_out == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 20_000))


def test_fingerprint_is_of_the_data(store, copy, tmp_path, documents, wordpiece):
    def fingerprint(name, texts, wordpiece):
        return write_store(
            tmp_path / name, texts, wordpiece, heldout_bound=0.1, provenance={}
        ).fingerprint

    assert open_token_store(copy).fingerprint == store.fingerprint
    assert fingerprint("same", documents[:100], wordpiece) == store.fingerprint
    cased = WordPiece(wordpiece.vocab, lowercase=False)
    assert len({fingerprint("cased", documents[:2], cased), store.fingerprint}) == 2
    assert fingerprint("fewer", documents[:99], wordpiece) != store.fingerprint


def edit_manifest(path, **changes):
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(100)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "no token store there"),
        (lambda path: (path / "manifest.json").unlink(), "no token store there"),
        (lambda path: path.rename(f"{path}.unfinished"), "not finished; run the same"),
        (lambda path: truncate(path / "manifest.json"), "manifest.json: not JSON"),
        (lambda path: (path / "manifest.json").write_text("{}"), "not the manifest of"),
        (lambda path: edit_manifest(path, version=2), "format version 2, this bert_jax reads 1"),
        (lambda path: truncate(path / "train/tokens.bin"), r"tokens\.bin: has 100 bytes; the mani"),
        (lambda path: (path / "train/documents.bin").unlink(), r"documents\.bin: is missing"),
        (lambda path: (path / "vocab.txt").unlink(), "no such vocabulary file"),
        (
            lambda path: (path / "vocab.txt").open("a").write("zzz\n"),
            "not the one that the tokens were made with",
        ),
    ],
)
def test_damaged_stores_are_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message) as error:
        open_token_store(copy)
    assert "\n" not in str(error.value)


def test_verify_finds_a_changed_byte(copy):
    verify_store(copy)
    tokens = np.memmap(copy / "train" / "tokens.bin", np.uint16, mode="r+")
    tokens[1000] ^= 1
    tokens.flush()
    open_token_store(copy)
    with pytest.raises(UserError, match=r"tokens\.bin: content changed"):
        verify_store(copy)


def test_nothing_is_overwritten(copy, wordpiece):
    with pytest.raises(UserError, match="exists and is not empty"):
        write_store(copy, ["A text."], wordpiece, heldout_bound=0.1, provenance={})
    verify_store(copy)


def test_a_failed_run_leaves_nothing(tmp_path, wordpiece):
    def documents():
        yield "A text."
        raise UserError("not UTF-8")

    path = tmp_path / "store"
    for texts, message in ((documents(), "not UTF-8"), (["", " "], "no document with text")):
        with pytest.raises(UserError, match=message):
            write_store(path, texts, wordpiece, heldout_bound=0.1, provenance={})
    assert not list(tmp_path.iterdir())

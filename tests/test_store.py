"""The token store: content, determinism, the held-out rule, and damage of every kind."""

import itertools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

import bert_jax
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.heldout_documents import document_hash, heldout_bound
from bert_jax.data.sampling import Sampling
from bert_jax.data.sentences import split_sentences
from bert_jax.data.split import BLOCK_BYTES
from bert_jax.data.store import open_token_store, verify_store
from bert_jax.data.store_writer import write_store
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
    assert store.tokenizer == wordpiece


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
        (lambda path: edit_manifest(path, version=3), "format version 3, this bert_jax reads 2"),
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


def test_tokens_are_checked_before_they_are_used(store, tmp_path):
    """Each block once; a store of an older version has no checksums, but ids have a limit."""
    path, sampling, rows = tmp_path / "copy", Sampling(batch_size=8), np.arange(8)
    num_blocks = -(-store.train.tokens.nbytes // BLOCK_BYTES)
    assert num_blocks > 2
    for id_, is_older, message in (
        (5, False, rf"tokens\.bin: bytes from {BLOCK_BYTES:,} changed since they were written\. R"),
        (3000, False, rf"tokens\.bin: bytes from {BLOCK_BYTES:,} changed"),
        (3000, True, rf"bytes from {BLOCK_BYTES:,} have id 3,000, but the vocabulary 3,000 tokens"),
        (5, True, None),
    ):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(store.path, path)
        if is_older:
            manifest = json.loads((path / "manifest.json").read_text())
            del manifest["fingerprint"]
            for split in ("train", "heldout"):
                del manifest["files"][f"{split}/tokens.bin"]["block_crc32"]
            (path / "manifest.json").write_text(json.dumps(manifest))
        tokens = np.memmap(path / "train" / "tokens.bin", np.uint16, mode="r+")
        assert tokens[BLOCK_BYTES // 2] != id_
        tokens[BLOCK_BYTES // 2] = id_
        tokens.flush()
        opened = open_token_store(path)
        assert opened.fingerprint == store.fingerprint
        stream = opened.training_batches(sampling, seed=0, host_rows=lambda _: rows)
        steps = range(-(-stream.rows_per_epoch // 8))
        if message is None:
            assert max(stream.batch(step)["input_ids"].max() for step in steps) < 3000
            continue
        with pytest.raises(UserError, match=message):
            list(map(stream.batch, steps))
        block = BLOCK_BYTES // 2
        opened.train.blocks.check(np.array([0, 2 * block]), np.array([block, block]))  # the others
        with pytest.raises(UserError, match=message):
            opened.train.blocks.check(np.array([0]), np.array([3 * block]))


def test_flipped_bits_are_noticed(documents, tmp_path):
    """In each file, and in a process of its own: a wrong offset once crashed it or hung."""
    texts = [text[:3000] for text in documents[:12]]
    wordpiece = train_wordpiece(texts, vocab_size=400)
    write_store(tmp_path / "store", texts, wordpiece, heldout_bound=0.3, provenance={})
    script = pathlib.Path(__file__).with_name("store_damage.py")
    command = [sys.executable, script, tmp_path / "store", "30"]
    found = os.environ | {"PYTHONPATH": str(pathlib.Path(bert_jax.__file__).parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=found)
    assert run.returncode == 0, run.stderr
    results = [line.split() for line in run.stdout.splitlines()]
    assert len(results) == 11 * 30
    for file, _, _, result in results:
        may_be_same = file in ("manifest.json", "tokenizer_config.json")  # a name, or white space
        assert result == "refused" or (result == "same" and may_be_same)


BAD_VALUES = [None, True, -1, 1.5, 1e308, 10**30, "", "../../x", "\0", [], {}, {"a": 1}, [1]]


def test_manifests_of_others(store, copy):
    """Fields missing, renamed, or of another type: refused, or of no importance."""
    file, rng = copy / "manifest.json", random.Random(0)
    text = file.read_text()

    def places(value, path=()):
        for key in value if isinstance(value, dict) else ():
            yield (*path, key)
            yield from places(value[key], (*path, key))

    optional = {"block_crc32", "single_sentence_documents", "characters"}
    optional |= {"unknown_characters", "long_word_characters"}
    needed = {"format", "version", "dtype", "vocab_size", "vocab_hash", "splits", "files"}
    changes = [lambda parent, key: parent.pop(key)]
    changes.append(lambda parent, key: parent.update({f"../{key}": parent.pop(key)}))
    for value in BAD_VALUES:
        changes.append(lambda parent, key, value=value: parent.update({key: value}))
    for path in places(json.loads(text)):
        for change in (*changes[:2], *rng.sample(changes[2:], 4)):
            manifest = json.loads(text)
            parent = manifest
            for key in path[:-1]:
                parent = parent[key]
            change(parent, path[-1])
            file.write_text(json.dumps(manifest))
            try:
                message, fingerprint = "", open_token_store(copy).fingerprint
            except UserError as error:
                message = str(error)
            if message:
                assert message.startswith(str(copy))
                assert "\n" not in message
            else:
                assert fingerprint == store.fingerprint
                assert path[0] not in needed or path[-1] in optional


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

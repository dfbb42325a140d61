"""Stores of several shards: their content, their rows, damage, and documents that are added."""

import itertools
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bert_jax.api.prepare import prepare
from bert_jax.cli.prepare import main
from bert_jax.data import store_writer
from bert_jax.data.batches import Batches
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.heldout_documents import document_hash
from bert_jax.data.rows import StoreRows
from bert_jax.data.sampling import Sampling
from bert_jax.data.split import Shards
from bert_jax.data.store import damaged_files, open_token_store, verify_store
from bert_jax.data.store_writer import append_to_store, write_store
from bert_jax.data.wordpiece import train_wordpiece
from bert_jax.errors import UserError

pytestmark = pytest.mark.core

SPECIAL = SimpleNamespace(cls_id=2, sep_id=3, pad_id=0)
GIVEN = {"heldout_bound": 0.2, "provenance": {}}


@pytest.fixture(scope="module")
def texts():
    """120 documents, most short, one long; the text of addresses."""
    found = list(read_documents(find_sources(["corpus:sotu"])))
    return [text[: 60_000 if i == 7 else 900 + 40 * i] for i, text in enumerate(found[:120])]


@pytest.fixture(scope="module")
def wordpiece(texts):
    return train_wordpiece(texts, vocab_size=500)


@pytest.fixture(scope="module")
def single(texts, wordpiece, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "store"
    return write_store(path, texts, wordpiece, **GIVEN)


@pytest.fixture(scope="module")
def store(texts, wordpiece, tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "store"
    return write_store(path, texts, wordpiece, shard_tokens=20_000, **GIVEN)


@pytest.fixture
def copy(store, tmp_path):
    return shutil.copytree(store.path, tmp_path / "copy")


def tree(path):
    files = (p for p in Path(path).rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def sentences(splits):
    """The ids of every sentence, by document."""
    for split in splits:
        for first, stop in itertools.pairwise(split.documents):
            spans = split.sentences[first : stop + 1]
            yield [split.tokens[a:b].tolist() for a, b in itertools.pairwise(spans)]


def same_batch(left, right):
    return all(np.array_equal(left[name], right[name]) for name in left)


def test_shards_hold_the_same_documents_in_order(store, single, texts):
    """Each but the last has as many tokens as it should have, and few more."""
    assert len(store.shards["train"]) == len(store.shards["heldout"]) > 4
    for name in ("train", "heldout"):
        assert [*sentences(store.shards[name])] == [*sentences(single.shards[name])]
        np.testing.assert_array_equal(store.totals[name], single.totals[name])
    counts = {name: dict(found) for name, found in single.manifest["splits"].items()}
    assert {name: dict(found) for name, found in store.manifest["splits"].items()} == counts
    sizes = zip(store.shards["train"].sizes, store.shards["heldout"].sizes)
    tokens = [train.tokens + heldout.tokens for train, heldout in sizes]
    assert min(tokens[:-1]) >= 20_000
    assert sum(total > 40_000 for total in tokens) == 0
    assert sum(document_hash(text) < 0.2 for text in texts) == counts["heldout"]["documents"]
    assert "shards" in store.summary
    verify_store(store.path)


def test_same_bytes_for_any_number_of_workers(store, texts, wordpiece, tmp_path):
    path = tmp_path / "store"
    write_store(path, texts, wordpiece, shard_tokens=20_000, workers=2, **GIVEN)
    assert tree(path) == tree(store.path)


def test_one_shard_is_a_store_as_ever(single, texts, wordpiece, tmp_path):
    path = tmp_path / "store"
    write_store(path, texts, wordpiece, shard_tokens=10**9, **GIVEN)
    assert tree(path) == tree(single.path)
    assert single.manifest["version"] == 1
    assert not (single.path / "shards").exists()


def rows_of(store, split="train", *, seed=0, **options):
    sampling = Sampling(**{"batch_size": 8, "max_seq_length": 32, **options})
    return StoreRows(store.shards[split], sampling, seed=seed), sampling


@pytest.mark.parametrize("packing", [False, True])
def test_every_document_is_used_once_a_pass(store, packing):
    """Also of shards whose passes do not end where a visit ends."""
    rows, _ = rows_of(store, pairs="none", packing=packing)
    num_shards, used = len(store.shards["train"]), Counter()
    lengths = {}
    stream = np.arange(4 * rows.rows_per_epoch)
    for split, plan, key, where, of_plan in rows.pieces(stream):
        shard, epoch = key % num_shards, key // num_shards
        assert split is store.shards["train"][shard] or len(split.tokens)
        assert len(where) == len(of_plan)
        examples = plan.examples(of_plan)
        used[shard, epoch] += int(plan.a_length[examples].sum())
        lengths.setdefault(shard, len(split.tokens))
        if epoch == 0:  # no later pass begins before
            assert not used[shard, 1]
    assert lengths.keys() == {*range(num_shards)}
    for shard, length in lengths.items():
        assert used[shard, 0] == length
        for epoch in (1, 2):  # passes differ by a few rows
            assert used[shard, epoch] == pytest.approx(length, rel=0.05)


def test_rows_are_shared_by_tokens(store):
    rows, _ = rows_of(store)
    num_shards = len(store.shards["train"])
    for number in range(3):
        found = Counter()
        stream = np.arange(number * rows.rows_per_epoch, (number + 1) * rows.rows_per_epoch)
        order = []
        for _, _, key, where, _ in rows.pieces(stream):
            found[key % num_shards] += len(where)
            order.append(key % num_shards)
        assert {*order} == {*range(num_shards)}
        tokens = [size.tokens for size in store.shards["train"].sizes]
        for shard, count in found.items():
            share = tokens[shard] / sum(tokens) * rows.rows_per_epoch
            assert count == pytest.approx(share, abs=2)


def test_a_batch_depends_on_its_step_only(store):
    """In any order, in threads, from any row on, on any number of hosts."""
    rows, sampling = rows_of(store, batch_size=24)
    whole = Batches(rows, sampling, SPECIAL)
    last = 3 * rows.rows_per_epoch // 24
    steps = [5, last, 0, last // 2, 1, last - 1] * 2
    found = {step: whole.batch(step) for step in range(last + 1)}
    shuffled = np.random.default_rng(0).permutation(24)
    hosts = [np.sort(part) for part in np.array_split(shuffled, [10, 15])]
    for of_host in (np.arange(24), *hosts):
        other = Batches(rows_of(store)[0], sampling, SPECIAL, host_rows=lambda _, r=of_host: r)
        with ThreadPoolExecutor(4) as pool:
            for step, batch in zip(steps, pool.map(other.batch, steps)):
                assert same_batch(batch, {k: v[of_host] for k, v in found[step].items()})
    shifted = Batches(rows_of(store)[0], sampling, SPECIAL, first_row=48)
    assert same_batch(shifted.batch(3), found[5])
    keys = np.concatenate([batch["example_ids"].reshape(-1, 2) for batch in found.values()])
    keys = keys[np.concatenate([b["cls_positions"].ravel() * 0 + 1 for b in found.values()]) > 0]
    seeds = Batches(rows_of(store, seed=1)[0], sampling, SPECIAL).batch(0)
    assert not same_batch(seeds, found[0])
    assert len(np.unique(keys[:, 0])) > len(store.shards["train"])


def test_shards_of_few_documents_give_what_they_have():
    """A shard of one document has no pairs; the others give them."""
    sizes = [SimpleNamespace(documents=n, tokens=100, single_sentence_documents=0) for n in (1, 5)]
    opened = []

    def open_shard(index):
        opened.append(index)
        offsets = np.arange(0, 101, 4)
        return SimpleNamespace(
            name="train", tokens=np.arange(100), sentences=offsets,
            documents=np.arange(0, 26, 5), continues=None,
        )  # fmt: skip

    rows = StoreRows(Shards("train", sizes, open_shard), Sampling(max_seq_length=16), seed=0)
    assert {piece.key for piece in rows.pieces(np.arange(rows.rows_per_epoch))} == {1}
    assert {*opened} == {1}


def test_held_out_documents_are_scored_once(store):
    """All of them, or the first rows of each shard in proportion."""
    sampling = Sampling(batch_size=8, max_seq_length=32, pairs="none")
    everything = [*store.heldout_batches(sampling, num_batches=0, host_rows=np.arange(8))]
    tokens = np.concatenate([b["input_ids"][b["segment_ids"] > 0] for b in everything])
    ids, counts = np.unique(tokens[~np.isin(tokens, (2, 3))], return_counts=True)
    np.testing.assert_array_equal(counts, store.totals["heldout"][ids])
    some = [*store.heldout_batches(sampling, num_batches=3, host_rows=np.arange(8))]
    assert len(some) == 3
    keys = np.concatenate([batch["example_ids"][:, 0, 0] for batch in some])
    assert len(np.unique(keys)) == sum(s.tokens > 0 for s in store.shards["heldout"].sizes)
    hosts = [
        store.heldout_batches(sampling, num_batches=3, host_rows=part)
        for part in np.split(np.arange(8), 2)
    ]
    for batch, *parts in zip(some, *hosts):
        assert same_batch(batch, {k: np.concatenate([p[k] for p in parts]) for k in batch})


@pytest.mark.parametrize(
    ("file", "when"),
    [
        ("shards/00002/train/sentences.bin", "used"),
        ("shards/00002/train/tokens.bin", "used"),
        ("shards/00002/train/documents.bin", "used"),
        ("shards/00002/manifest.json", "used"),
        ("shards/00000/manifest.json", "used"),
        ("train/tokens.bin", "used"),
        ("totals.bin", "opened"),
        ("manifest.json", "opened"),
    ],
)
def test_a_damaged_shard_is_named(copy, store, file, when):
    if file == "totals.bin":
        file = f"shards/{len(store.shards['train']) - 1:05}/totals.bin"
    content = bytearray((copy / file).read_bytes())
    at = len(content) // 2
    if file.endswith("json"):
        at = content.rindex(b'"fingerprint": "' if file == "manifest.json" else b'"sha256": "') + 18
    content[at] ^= 1
    (copy / file).unlink()  # the other one may be mapped
    (copy / file).write_bytes(content)

    def read():
        opened = open_token_store(copy)
        assert when == "used"
        stream = Batches(*rows_of(opened), SPECIAL)
        for step in range(stream.rows_per_epoch // 8 + 1):
            stream.batch(step)

    with pytest.raises(UserError, match=file) as error:
        read()
    assert "\n" not in str(error.value)
    if file != "manifest.json":
        assert [name for name, problem in damaged_files(copy) if problem] == [file]


def test_missing_shards_are_named(copy):
    shutil.rmtree(copy / "shards" / "00003")
    with pytest.raises(UserError, match=r"shards/00003: is missing"):
        open_token_store(copy)
    shutil.rmtree(copy / "shards")
    with pytest.raises(UserError, match=r"shards/00000: is missing"):
        open_token_store(copy)


def test_another_shard_is_noticed(copy, store):
    """One that is whole, but not that of this store."""
    shutil.rmtree(copy / "shards" / "00001")
    shutil.copytree(copy / "shards" / "00002", copy / "shards" / "00001")
    with pytest.raises(UserError, match=r"shards/00001/manifest\.json: not the shard that"):
        open_token_store(copy).shards["train"][1]


def test_documents_are_added_as_new_shards(single, store, texts, wordpiece, tmp_path):
    """To a store of one shard, and to one of several; nothing of it is written again."""
    for count, old in enumerate((single, store)):
        path = tmp_path / str(count)
        shutil.copytree(old.path, path)
        before = tree(path)
        new = [f"Another document, number {i}. It has two sentences." for i in range(50)]
        found = append_to_store(path, [*new, ""], provenance={"sources": ["x"]}, shard_tokens=400)
        after = tree(path)
        assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
        assert found.fingerprint != old.fingerprint
        assert len(found.shards["train"]) > len(old.shards["train"]) + 1
        for split in ("train", "heldout"):
            keep = [text for text in new if (document_hash(text) < 0.2) == (split == "heldout")]
            documents = [*sentences(found.shards[split])]
            assert documents[: -len(keep)] == [*sentences(old.shards[split])]
            assert documents[-len(keep) :] == [
                wordpiece.encode(text.replace(". ", ".\n").split("\n")) for text in keep
            ]
            tokens = np.concatenate([split.tokens for split in found.shards[split]])
            counted = np.bincount(tokens, minlength=500)
            np.testing.assert_array_equal(found.totals[split], counted)
        assert found.manifest["empty_documents"] == old.manifest["empty_documents"] + 1
        assert found.manifest["appended"] == [{"sources": ["x"]}]
        verify_store(path)
        with pytest.raises(UserError, match="no document with text"):
            append_to_store(path, [" "], provenance={})
        assert tree(path) == after
        assert not path.with_name(f"{path.name}.unfinished").exists()


def test_what_an_interrupted_call_left_is_replaced(single, tmp_path, monkeypatch):
    path = shutil.copytree(single.path, tmp_path / "store")
    write_json = store_writer.write_json

    def killed(file, value):
        if file == path / "manifest.json":
            raise KeyboardInterrupt
        write_json(file, value)

    monkeypatch.setattr(store_writer, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        append_to_store(path, ["A first text. And more."], provenance={})
    monkeypatch.undo()
    assert (path / "shards" / "00001").exists()
    assert open_token_store(path).fingerprint == single.fingerprint
    verify_store(path)
    append_to_store(path, ["A second text. And more."], provenance={})
    append_to_store(path, ["A third text. And more."], provenance={})
    found = open_token_store(path)
    assert len(found.shards["train"]) == 3
    verify_store(path)


def test_the_command_adds_documents_once(tmp_path, capsys):
    for name in ("one", "two"):
        text = "\n\n".join(f"The {name} text {i}.\nIt is {name}." for i in range(40))
        (tmp_path / f"{name}.txt").write_text(text)
    store = str(tmp_path / "store")
    main([str(tmp_path / "one.txt"), f"--output={store}", "--vocab-size=100", "--workers=1"])
    first = open_token_store(store)
    more = [str(tmp_path / "two.txt"), f"--output={store}", "--append", "--workers=1"]
    main(more)
    found = open_token_store(store)
    assert found.fingerprint != first.fingerprint
    assert sum(size.documents for split in found.shards.values() for size in split.sizes) == 80
    capsys.readouterr()
    main(more)
    assert "nothing to do" in capsys.readouterr().out
    assert open_token_store(store).fingerprint == found.fingerprint
    with pytest.raises(UserError, match="a store of other sources"):
        prepare([str(tmp_path / "one.txt")], store, vocab_size=100)
    with pytest.raises(UserError, match="no token store there"):
        main([*more[:1], f"--output={tmp_path / 'none'}", "--append"])
    with pytest.raises(SystemExit):
        main([*more, "--heldout=0.5"])
    assert "--append takes no --heldout: the store has its own" in capsys.readouterr().err

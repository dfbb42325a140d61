import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from sotu_words import CLS, PAD, SEP, make_split, sotu_words

from bert_jax.data import batches as batches_module
from bert_jax.data import rows as rows_module
from bert_jax.data.batches import READ_AHEAD, batch_shapes, one_epoch, prefetch
from bert_jax.data.rows import StoreRows
from bert_jax.data.sampling import Sampling, plan_epoch
from bert_jax.data.split import Shards, one_shard
from bert_jax.errors import UserError

pytestmark = pytest.mark.core

OPTIONS = {"batch_size": 32, "max_seq_length": 128}
PACKED = {**OPTIONS, "packing": True, "max_examples_per_row": 4}


def Batches(split, *, seed, num_epochs=None, first_row=0, host_rows=None, pad_id=0, **options):
    """Batches without packing, unless it is asked for."""
    sampling = Sampling(**{"packing": False, **options})
    special = SimpleNamespace(cls_id=1, sep_id=2, pad_id=pad_id)
    rows = StoreRows(split if isinstance(split, Shards) else one_shard(split), sampling, seed=seed)
    if num_epochs:
        rows.end_after_one_round()
    of_host = np.arange if host_rows is None else lambda _: host_rows
    return batches_module.Batches(rows, sampling, special, first_row=first_row, host_rows=of_host)


def heldout_batches(split, *, num_batches=0, host_rows=None, **options):
    stream = Batches(split, seed=0, num_epochs=1, host_rows=host_rows, **options)
    return one_epoch(stream, options["batch_size"], num_batches)


def tiny_split(name="train"):
    """20 documents of 5 sentences of 3 tokens; a token's id is its place plus 3."""
    return make_split(np.arange(3, 303), np.arange(0, 301, 3), np.arange(0, 101, 5), name)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == np.int32
        assert np.array_equal(left[name], right[name]), name


def concatenate(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def packed():
    return Batches(sotu_words()[0], seed=0, **PACKED)


@pytest.mark.parametrize("pairs", ["nsp", "sop", "none"])
@pytest.mark.parametrize("packing", [False, True])
def test_rows_read_back_as_text(pairs, packing):
    split, vocab = sotu_words()
    options = {
        "batch_size": 32, "max_seq_length": 128, "pairs": pairs, "short_seq_prob": 0.5,
        "packing": packing, "max_examples_per_row": 4,
    }  # fmt: skip
    batch = Batches(split, seed=0, **options).batch(5)
    sampling = Sampling(**options)
    assert {name: values.shape for name, values in batch.items()} == batch_shapes(sampling)
    plan = plan_epoch(split.sentences, split.documents, sampling, seed=0, epoch=0)

    def text(start, length):
        return [vocab[i] for i in split.tokens[start : start + length]]

    for i in range(32):
        row = 5 * 32 + i
        examples = plan.row_examples[plan.row_offsets[row] : plan.row_offsets[row + 1]]
        words, types, positions, segments = [], [], [], []
        for e, x in enumerate(examples):
            assert batch["cls_positions"][i, e] == len(words)
            assert batch["next_sentence_label"][i, e] == plan.next_sentence_label[x]
            assert batch["example_ids"][i, e].tolist() == [0, x]
            a = [CLS, *text(plan.a_start[x], plan.a_length[x]), SEP]
            b = [*text(plan.b_start[x], plan.b_length[x]), SEP] if pairs != "none" else []
            words += a + b
            types += [0] * len(a) + [1] * len(b)
            positions += range(len(a + b))
            segments += [e + 1] * len(a + b)
        padding = 128 - len(words)
        assert [vocab[t] for t in batch["input_ids"][i]] == words + [PAD] * padding
        assert batch["token_type_ids"][i].tolist() == types + [0] * padding
        assert batch["position_ids"][i].tolist() == positions + [0] * padding
        assert batch["segment_ids"][i].tolist() == segments + [0] * padding
        assert not batch["cls_positions"][i, len(examples) :].any()
        assert (batch["next_sentence_label"][i, len(examples) :] == -1).all()
        assert not batch["example_ids"][i, len(examples) :].any()
    assert batch["cls_positions"].shape == (32, 4 if packing else 1)
    assert (batch["segment_ids"].max() > 1) == packing


def test_pad_id():
    batch = Batches(tiny_split(), seed=0, pad_id=9999, **OPTIONS).batch(0)
    assert np.array_equal(batch["input_ids"] == 9999, batch["segment_ids"] == 0)


def test_hosts_share_the_global_batch(packed):
    split = np.array_split(np.random.default_rng(0).permutation(32), [16, 24])
    host_rows = [np.sort(rows) for rows in split]
    hosts = [Batches(sotu_words()[0], seed=0, host_rows=rows, **PACKED) for rows in host_rows]
    last = packed.rows_per_epoch // 32  # its rows come from two epochs
    for step in (0, 7, last):
        whole = packed.batch(step)
        for host, rows in zip(hosts, host_rows):
            assert_equal(host.batch(step), {name: x[rows] for name, x in whole.items()})


def test_a_batch_does_not_depend_on_those_before_it(packed):
    for step in (100, 3, 3 + 3 * packed.rows_per_epoch // 32):
        assert_equal(packed.batch(step), Batches(sotu_words()[0], seed=0, **PACKED).batch(step))


def test_epochs_follow_one_another():
    """Each epoch gives rows_per_epoch rows of its own plan, also when a batch spans several."""
    batches = Batches(tiny_split(), seed=0, batch_size=70, max_seq_length=20)
    rows = batches.rows_per_epoch
    assert rows < 70
    ids = np.concatenate([batches.batch(step)["example_ids"][:, 0] for step in range(10)])
    assert np.array_equal(ids[:, 0], np.arange(700) // rows)
    for epoch in range(700 // rows):
        examples = ids[ids[:, 0] == epoch, 1]
        sampling = Sampling(max_seq_length=20, packing=False)
        plan = plan_epoch(
            tiny_split().sentences, tiny_split().documents, sampling, seed=0, epoch=epoch
        )
        expected = np.resize(plan.row_examples, rows)  # repeats the first rows of a short epoch
        assert np.array_equal(examples, expected)


def test_each_epoch_is_planned_once_and_ahead(monkeypatch):
    planned = []
    ahead = threading.Event()

    def spy(*args, epoch, **options):
        planned.append(epoch)
        if epoch == 1:
            ahead.set()
        return plan_epoch(*args, epoch=epoch, **options)

    monkeypatch.setattr(rows_module, "plan_epoch", spy)
    batches = Batches(tiny_split(), seed=0, batch_size=1, max_seq_length=20)
    epoch = batches.rows_per_epoch
    # What threads read ahead must not span more epochs than are held.
    assert epoch > READ_AHEAD.num_threads + READ_AHEAD.prefetch_buffer_size
    assert planned == [0]
    batches.batch(0)
    assert ahead.wait(10)
    batches.batch(epoch + 1)
    batches.batch(0)  # a slower thread: epoch 1 is in use, epoch 0 is still at hand
    assert len(list(prefetch(batches, 1, 5 * epoch))) == 5 * epoch - 1
    batches.batch(5 * epoch - 1)
    assert planned[:5] == [0, 1, 2, 3, 4]
    assert len(planned) == len(set(planned))


def test_threads_get_the_same_batches(packed):
    boundary = packed.rows_per_epoch // 32
    steps = [0, 2 * boundary, 1, boundary, 3 * boundary, boundary - 1] * 3
    fresh = Batches(sotu_words()[0], seed=0, **PACKED)
    with ThreadPoolExecutor(8) as pool:
        for step, batch in zip(steps, pool.map(fresh.batch, steps)):
            assert_equal(batch, packed.batch(step))


def test_prefetch_keeps_the_order(packed):
    steps = range(packed.rows_per_epoch // 32 - 10, packed.rows_per_epoch // 32 + 10)
    fetched = list(prefetch(packed, steps.start, steps.stop))
    assert len(fetched) == 20
    for step, batch in zip(steps, fetched):
        assert_equal(batch, packed.batch(step))
    assert list(prefetch(packed, 5, 5)) == []


def test_heldout_gives_every_row_once():
    options = {"batch_size": 8, "max_seq_length": 20}
    heldout = heldout_batches(tiny_split("heldout"), **options)
    batches = list(heldout)
    assert {b["input_ids"].shape for b in batches} == {(8, 20)}
    rows = concatenate(batches)
    empty = rows["segment_ids"].max(axis=1) == 0
    count = int((~empty).sum())
    assert 0 < empty.sum() < 8
    assert empty[count:].all()
    assert sorted(rows["example_ids"][:count, 0, 1]) == list(range(count))
    assert (rows["next_sentence_label"][empty] == -1).all()
    assert not rows["input_ids"][empty].any()

    for first, again in zip(batches, heldout, strict=True):
        assert_equal(first, again)
    some = list(heldout_batches(tiny_split("heldout"), num_batches=2, **options))
    assert_equal(concatenate(some), concatenate(batches[:2]))
    assert len(list(heldout_batches(tiny_split("heldout"), num_batches=10**6, **options))) == len(
        batches
    )
    hosts = [
        heldout_batches(tiny_split("heldout"), host_rows=rows, **options)
        for rows in np.split(np.arange(options["batch_size"]), 4)
    ]
    shared = concatenate(list(itertools.chain(*zip(*hosts))))
    assert_equal(shared, rows)


def test_errors_name_the_split():
    one_document = make_split(np.arange(3, 9), [0, 3, 6], [0, 2], "heldout")
    with pytest.raises(UserError, match=r"heldout split: .*only one"):
        heldout_batches(one_document, **OPTIONS)

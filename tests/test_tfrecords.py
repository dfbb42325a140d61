"""Pre-masked TFRecords: real text in Google's features, read back, trained on, broken."""

import base64
import functools
import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from tensorboardX.record_writer import RecordWriter
from test_training import assert_same_run, recipe

from bert_jax import __main__
from bert_jax.api.pretrain import pretrain
from bert_jax.cli import evaluate, inspect
from bert_jax.data.batches import PremaskedBatches, one_epoch
from bert_jax.data.sampling import Sampling
from bert_jax.data.stores import open_store, verify
from bert_jax.data.tfrecords import Example, _masked_crc, is_premasked, open_premasked
from bert_jax.errors import UserError
from bert_jax.objective.pretraining import PreTraining
from bert_jax.report.metrics_file import read_metrics

pytestmark = pytest.mark.core

GOOGLE_NAMES = {
    "input_ids": "input_ids",
    "segment_ids": "input_mask",
    "token_type_ids": "segment_ids",
    "masked_lm_positions": "masked_lm_positions",
    "masked_lm_ids": "masked_lm_ids",
    "masked_lm_weights": "masked_lm_weights",
    "next_sentence_label": "next_sentence_labels",
}
# A file of one record that TensorFlow 2.21 wrote.
TENSORFLOW_FILE = (
    "(f|Me00000CR5Pb3eN!w843w$Zg6#UUuk4>5)2v&3J3xR1Oo{J000Ua3JPg%aCLNFZDDh35)2v&3J3uK0RaI4000UY3Jq;"
    "xb8BT}Uu<n(X=HN}2O0$m1FQl73LOd)ZDDh3Wn^D$ZC`M2b7^#GZ*FrE1{wqk0s;UEAqo*~VRLI`WM6D;Uw36`XJ~YD5)2"
    "Xw3J3rIfIk2L000Ud3KVW-"
    "cywQLWo~q3ZewL%Y++($Y;zI?8UqRe0SX%m3v*>>ZDnqBUuk4>5)2v&3J3rI00032005$kO=<"
)


def configured(store: Path, **changes):
    """Eight steps of a very small model on rows of one example."""
    fields = {
        "steps": 8,
        "log_every": 2,
        "eval_every": 4,
        "eval_batches": 5,
        "optimizer.gradient_accumulation": 1,
        "checkpoint_every": 4,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "data.packing": False,
        "masking.max_predictions_per_seq": 10,
    }
    return recipe(store, **fields | changes)


def features(batch: dict, row: int) -> dict[str, list]:
    return {theirs: batch[ours][row].tolist() for ours, theirs in GOOGLE_NAMES.items()}


def first_record(folder: Path) -> dict[str, list]:
    return features(open_premasked(folder).train.read([0]), 0)


def encoded(values: dict[str, list]) -> bytes:
    example = Example()
    for name, numbers in values.items():
        feature = example.features.feature[name]
        kind = feature.float_list if name == "masked_lm_weights" else feature.int64_list
        kind.value.extend(numbers)
    return example.SerializeToString()


def write(path: Path, records: list[bytes]) -> Path:
    writer = RecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.fixture(scope="module")
def masked(sotu_store):
    """20 training batches of 16 rows and 5 held-out ones from the token store, masked."""
    config, store = configured(sotu_store), open_store(sotu_store)
    masking, rows = config.bound_masking(store.tokenizer), np.arange(config.data.batch_size)
    prepare = jax.jit(PreTraining(None, masking, seed=0).prepare)
    stream = store.training_batches(config.data, seed=config.seed, host_rows=lambda _: rows)
    heldout = store.heldout_batches(config.data, num_batches=5, host_rows=rows)
    batches = {"train": map(stream.batch, range(20)), "heldout": heldout}
    masked = {}
    for split, some in batches.items():
        columns = jax.device_get([prepare(batch) for batch in some])
        rows = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
        real = rows["segment_ids"].any(axis=1)
        masked[split] = {name: values[real] for name, values in rows.items()}
    return masked


@pytest.fixture(scope="module")
def folder(sotu_store, masked, tmp_path_factory):
    """The same as files: two to train on, one held out."""
    folder = tmp_path_factory.mktemp("tfrecords")
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(sotu_store / name, folder)
    train, heldout = (
        [encoded(features(b, i)) for i in range(len(b["input_ids"]))]
        for b in (masked["train"], masked["heldout"])
    )
    write(folder / "part-00000-of-00002", train[:200])
    write(folder / "part-00001-of-00002", train[200:])
    write(folder / "heldout.tfrecord", heldout)
    return folder


def test_examples_are_what_was_written(folder, masked, sotu_store):
    assert is_premasked(folder)
    assert not is_premasked(sotu_store)
    store = open_premasked(folder)
    assert store.summary == "320 pre-masked training examples"
    for split in (store.train, store.heldout):
        expected = masked[split.name]
        assert len(split) == len(expected["input_ids"])
        found = split.read(range(len(split)))
        assert found.keys() == GOOGLE_NAMES.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name])
            assert values.dtype == expected[name].dtype


def test_a_file_of_tensorflow(tmp_path, folder):
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    data = base64.b85decode(TENSORFLOW_FILE)
    (tmp_path / "examples.tf_record").write_bytes(data)
    (tmp_path / "eval_10k").write_bytes(2 * data)
    store = open_premasked(tmp_path)
    expected = {
        "input_ids": [[2, 7, 4, 3, 9, 3, 0, 0]],
        "segment_ids": [[1, 1, 1, 1, 1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 0, 0, 1, 1, 0, 0]],
        "masked_lm_positions": [[2, 0]],
        "masked_lm_ids": [[300, 0]],
        "masked_lm_weights": [[1.0, 0.0]],
        "next_sentence_label": [[1]],
    }
    assert {name: values.tolist() for name, values in store.train.read([0]).items()} == expected
    assert len(store.heldout) == 2


def test_an_epoch_is_a_permutation(folder, masked):
    """Every row whole, as the token store gives it to the model; each once an epoch."""
    split = open_premasked(folder).train
    batches = PremaskedBatches(split, Sampling(batch_size=20), seed=3)
    assert batches.rows_per_epoch == 320
    written = masked["train"]
    number = {row.tobytes(): i for i, row in enumerate(written["input_ids"])}
    assert len(number) == 320
    orders = []
    for epoch in range(2):
        order = []
        for step in range(16 * epoch, 16 * (epoch + 1)):
            batch = batches.batch(step)
            rows = [number[row.tobytes()] for row in batch["input_ids"]]
            assert batch.keys() == written.keys() - {"example_ids"}
            for name, values in batch.items():
                np.testing.assert_array_equal(values, written[name][rows])
                assert values.dtype == written[name].dtype
            order += rows
        assert sorted(order) == list(range(320))
        orders.append(order)
    assert orders[0] != orders[1] != list(range(320))
    again = PremaskedBatches(split, Sampling(batch_size=20), seed=3).batch(17)
    np.testing.assert_array_equal(again["input_ids"], batches.batch(17)["input_ids"])


def test_hosts_share_a_batch(folder):
    split = open_premasked(folder).heldout
    rows = [np.array([0, 1, 2, 3, 4, 10]), np.array([5, 6, 7, 8, 9, 11])]
    sampling = Sampling(batch_size=12)

    def share(rows):
        stream = PremaskedBatches(split, sampling, seed=0, num_epochs=1, host_rows=lambda _: rows)
        return list(one_epoch(stream, 12))

    whole, *shares = (share(r) for r in (np.arange(12), *rows))
    assert len(whole) == -(-len(split) // 12)
    assert len(split) % 12, "the last batch is to be filled up"
    seen = []
    for batch, *parts in zip(whole, *shares):
        seen += [row.tobytes() for row in batch["input_ids"] if row.any()]
        for name, values in batch.items():
            joined = np.empty_like(values)
            for where, part in zip(rows, parts):
                joined[where] = part[name]
            np.testing.assert_array_equal(joined, values)
        empty = ~batch["segment_ids"].any(axis=1)
        assert (batch["next_sentence_label"][empty] == -1).all()
        assert not batch["masked_lm_weights"][empty].any()
    assert len(set(seen)) == len(seen) == len(split)


def test_words_are_counted_without_masks(folder, masked):
    rows = masked["train"]
    words = rows["input_ids"].copy()
    for i, weights in enumerate(rows["masked_lm_weights"] > 0):
        words[i, rows["masked_lm_positions"][i, weights]] = rows["masked_lm_ids"][i, weights]
    expected = np.bincount(words.ravel(), minlength=1000)
    expected[[0, 2, 3]] = 0  # [PAD], [CLS], [SEP]
    assert expected[4] == 0, "no [MASK] is left"
    np.testing.assert_array_equal(open_premasked(folder).train.token_counts, expected)


def test_training_resumes_exactly_and_is_evaluated(folder, tmp_path, capsys):
    """The second run has lost all that came after its first checkpoint."""
    straight, resumed = epath.Path(tmp_path / "straight"), epath.Path(tmp_path / "resumed")
    assert pretrain(configured(folder), straight)
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "8")
    assert pretrain(configured(folder), resumed)
    printed = capsys.readouterr().out
    assert "320 pre-masked training examples" in printed
    assert "resuming at step 4" in printed
    assert_same_run(straight, resumed, 8)

    baseline, *_, heldout = read_metrics(straight)
    assert baseline["split"] == "baseline"
    assert 4 < baseline["mlm_loss"] < np.log(1000)
    evaluate.main([f"--workdir={straight}", "--json"])
    scores = json.loads(capsys.readouterr().out)["heldout"]
    for name, value in scores.items():
        assert value == pytest.approx(heldout[name], rel=1e-5)


def test_compressed_files_hold_the_same_store(folder, tmp_path, monkeypatch):
    """They are unpacked once, and again only if they change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in folder.iterdir():
        is_vocabulary = file.name.startswith(("vocab", "tokenizer"))
        if is_vocabulary or file.name.startswith("heldout"):
            shutil.copy(file, packed)  # one that is not compressed, beside others
        else:
            (packed / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    copies = tmp_path / "cache" / "bert_jax" / "records"
    for _ in range(2):
        plain, store = open_premasked(folder), open_premasked(packed)
        assert store.fingerprint == plain.fingerprint
        assert len(list(copies.glob("*.tfrecord"))) == 2
        for mine, theirs in ((store.train, plain.train), (store.heldout, plain.heldout)):
            found, expected = mine.read([0, len(mine) - 1]), theirs.read([0, len(mine) - 1])
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values)
    changed = (packed / "part-00000-of-00002.gz", packed / "part-00001-of-00002.gz")
    contents = [file.read_bytes() for file in changed]
    for file, content in zip(changed, reversed(contents)):
        file.write_bytes(content)
        os.utime(file, (1, 1))
    assert open_premasked(packed).fingerprint != plain.fingerprint
    assert [problem for _, problem in verify(packed)] == [""] * 3
    changed[0].write_bytes(contents[0][:-20])
    assert [name for name, problem in verify(packed) if problem] == [changed[0].name]


def shortened(values: dict[str, list], length: int, slots: int) -> dict[str, list]:
    """An example of fewer tokens and slots."""
    changed = {name: values[name][:length] for name in ("input_ids", "input_mask", "segment_ids")}
    positions = [position % length for position in values["masked_lm_positions"][:slots]]
    changed |= {name: values[name][:slots] for name in ("masked_lm_ids", "masked_lm_weights")}
    return values | changed | {"masked_lm_positions": positions}


def test_phases_of_several_lengths(folder, masked, tmp_path, capsys):
    """Each phase takes the files of its length; a resume in the second goes on exactly."""
    store = tmp_path / "store"
    shutil.copytree(folder, store)
    for split, name in (("train", "short.tfrecord"), ("heldout", "heldout_short.tfrecord")):
        rows = masked[split]
        records = [encoded(shortened(features(rows, i), 32, 5)) for i in range(64)]
        write(store / name, records)
    opened = open_premasked(store)
    assert opened.summary == (
        "64 pre-masked training examples of 32 tokens, "
        "320 pre-masked training examples of 64 tokens"
    )
    batch = opened.training_batches(
        Sampling(batch_size=8, max_seq_length=64), seed=0, host_rows=lambda _: np.arange(8)
    ).batch(0)
    assert batch["input_ids"].shape == (8, 64)
    rows = {row.tobytes() for row in masked["train"]["input_ids"]}
    assert rows.issuperset(row.tobytes() for row in batch["input_ids"])
    sampling = Sampling(batch_size=8, max_seq_length=48, packing=False)
    with pytest.raises(UserError, match=r"=48, but .* have 32 or 64: set .* to 32 or 64$"):
        opened.check(sampling, 10, "config")

    phases = (
        {"steps": 4, "data": {"max_seq_length": 32}, "masking": {"max_predictions_per_seq": 5}},
        {"steps": 4},
    )
    straight, resumed = epath.Path(tmp_path / "straight"), epath.Path(tmp_path / "resumed")
    config = configured(store, phases=phases, checkpoint_every=2)
    assert pretrain(config, straight)
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "8")
    assert pretrain(config, resumed)
    assert "resuming at step 6" in capsys.readouterr().out
    assert_same_run(straight, resumed, 8)
    (store / "heldout_short.tfrecord").unlink()
    with pytest.raises(UserError, match="no record of 32 tokens for the heldout split"):
        open_premasked(store)


def test_copies_are_on_one_side(folder, tmp_path):
    """Without a held-out file one record in a hundred is held out, whatever its place."""
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    example = first_record(folder)
    records = []
    for word in range(5, 905):
        example["input_ids"][1] = word
        records.append(encoded(example))
    write(tmp_path / "a.tfrecord", records)
    write(tmp_path / "b.tfrecord", records[::-1])
    store = open_premasked(tmp_path)
    assert 2 <= len(store.heldout) <= 40
    assert len(store.train) + len(store.heldout) == 1800
    assert "share documents" in store.summary
    seen = [
        set(split.read(range(len(split)))["input_ids"][:, 1].tolist())
        for split in (store.train, store.heldout)
    ]
    assert not seen[0] & seen[1]

    (tmp_path / "b.tfrecord").unlink()
    half = open_premasked(tmp_path)
    assert 2 * len(half.heldout) == len(store.heldout)
    assert half.fingerprint != store.fingerprint
    few = write(tmp_path / "a.tfrecord", records[:2])
    assert len(open_premasked(few.parent).heldout) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.packing": True}, r"config\.data\.packing=True.*set config\.data\.packing to False"),
        ({"data.max_seq_length": 48}, r"config\.data\.max_seq_length=48.*have 64.*to 64$"),
        ({"data.max_predictions_per_seq": 20}, r"config\.masking\.max_pred.*=20.*have 10.*to 10$"),
    ],
)
def test_config_must_be_that_of_the_records(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        pretrain(configured(folder, **changes), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def without(values, name):
    return {key: numbers for key, numbers in values.items() if key != name}


RECORDS = {  # how the third record is broken -> what is said of it
    "a feature is missing": (lambda v: without(v, "input_mask"), "lacks input_mask; it has "),
    "too short": (
        lambda v: v | {"input_ids": v["input_ids"][:-1]},
        "input_ids has length 63, but",
    ),
    "two labels": (
        lambda v: v | {"next_sentence_labels": [0, 1]},
        "sentence_labels has length 2",
    ),
    "an id too large": (
        lambda v: v | {"input_ids": [2, 1000, *v["input_ids"][2:]]},
        r"input_ids has 1000, which is not in \[0, 1000\); is this the vocabulary",
    ),
    "a target too large": (
        lambda v: v | {"masked_lm_ids": [2**40] * 10},
        "masked_lm_ids has 1099511627776, which is not in",
    ),
    "a negative position": (
        lambda v: v | {"masked_lm_positions": [-1] * 10},
        r"masked_lm_positions has -1, which is not in \[0, 64\)$",
    ),
    "a third label": (
        lambda v: v | {"next_sentence_labels": [2]},
        r"next_sentence_labels has 2, which is not in \[0, 2\)$",
    ),
    "not a weight": (
        lambda v: v | {"masked_lm_weights": [float("nan")] * 10},
        "masked_lm_weights has nan",
    ),
    "padding_before_tokens": (
        lambda v: v | {"input_mask": [1, 0, *v["input_mask"][2:]]},
        "input_mask has a token at 2 after padding; padding must be at the end",
    ),
}


@pytest.mark.parametrize("how", RECORDS)
def test_broken_records(folder, tmp_path, how):
    breaks, message = RECORDS[how]
    values = first_record(folder)
    path = copied(folder, tmp_path) / "part-0.tfrecord"
    write(path, [encoded(values), encoded(values), encoded(breaks(values))])
    with pytest.raises(UserError, match=f"{path}: record 3: .*{message}"):
        open_premasked(tmp_path).train.read(range(3))


@pytest.mark.parametrize("name", GOOGLE_NAMES.values())
def test_features_have_a_type(folder, tmp_path, name):
    example = Example.FromString(encoded(first_record(folder)))
    feature = example.features.feature[name]
    is_float = name == "masked_lm_weights"
    feature.Clear()
    (feature.int64_list if is_float else feature.float_list).value.extend([1] * 10)
    write(copied(folder, tmp_path) / "part-0.tfrecord", [example.SerializeToString()])
    kind = "floats" if is_float else "integers"
    with pytest.raises(UserError, match=rf"record 1: {name} must be a list of {kind}"):
        open_premasked(tmp_path)


@pytest.mark.parametrize("name", ["input_ids", "masked_lm_positions"])
def test_examples_are_not_empty(folder, tmp_path, name):
    values = first_record(folder) | {name: []}
    write(copied(folder, tmp_path) / "part-0.tfrecord", [encoded(values)])
    with pytest.raises(UserError, match="record 1: input_ids and masked_lm_positions must be"):
        open_premasked(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**31, 2**32, 2**63 - 8, 2**63, 2**64 - 1])
def test_lengths_beyond_the_file(folder, tmp_path, length):
    header = struct.pack("<Q", length)
    path = copied(folder, tmp_path) / "part-0.tfrecord"
    path.write_bytes(header + struct.pack("<I", _masked_crc(header)))
    with pytest.raises(UserError, match=f"{path}: record 1: the file ends within it"):
        open_premasked(tmp_path)


def test_flipped_bits(folder, tmp_path):
    """None is overlooked: not in the frames, nor in the data."""
    record = encoded(first_record(folder))
    path = write(copied(folder, tmp_path) / "part-0.tfrecord", [record, record])
    content, rng = path.read_bytes(), np.random.default_rng(0)
    open_premasked(tmp_path).train.read(range(2))
    for bit in rng.integers(8 * len(content), size=200).tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        new = tmp_path / "new"  # the old file is still mapped
        new.write_bytes(damaged)
        new.replace(path)
        with pytest.raises(UserError, match=r"part-0\.tfrecord: record [12]: "):
            open_premasked(tmp_path).train.read(range(2))


def test_verify_reads_every_record(folder, tmp_path, capsys):
    inspect.main([str(folder), "--verify"])
    assert capsys.readouterr().out.splitlines() == [
        "heldout.tfrecord: whole",
        "part-00000-of-00002: whole",
        "part-00001-of-00002: whole",
        f"{folder} is whole.",
    ]
    record = encoded(first_record(folder))
    for name in ("part-0", "part-1"):
        write(copied(folder, tmp_path) / name, [record] * 2)
    (tmp_path / "part-1").write_bytes(flip(-9, (tmp_path / "part-1").read_bytes()))
    assert __main__.main(["inspect", str(tmp_path), "--verify"]) == 2
    printed = capsys.readouterr()
    assert "part-0: whole\npart-1: record 2: damaged, its checksum is wrong" in printed.out
    assert f"{tmp_path}: part-1 damaged; restore" in printed.err


def copied(folder: Path, tmp_path: Path) -> Path:
    """The folder without its training files."""
    for file in folder.iterdir():
        if not file.name.startswith("part"):
            shutil.copy(file, tmp_path)
    return tmp_path


def flip(position: int, data: bytes) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


FILES = {  # what is done to a file of two records -> what is said
    "a length damaged": (
        functools.partial(flip, 0),
        "record 1: the checksum of its length",
    ),
    "data damaged": (functools.partial(flip, -9), "record 2: damaged, its checksum is wrong"),
    "cut in the data": (lambda data: data[:-100], "record 2: the file ends within it"),
    "cut in the frame": (lambda data: data[: len(data) // 2 + 3], "record 2: the file ends within"),
    "text": (lambda data: b"The president of the United States.\n", "is this a complete TFRecord"),
    "compressed and cut": (
        lambda data: gzip.compress(data)[:-9],
        r"part-0.tfrecord: damaged or cut short \(Compressed file ended",
    ),
    "compressed and damaged": (
        lambda data: gzip.compress(flip(-9, data)),
        "part-0.tfrecord: record 2: damaged, its checksum is wrong",
    ),
    "empty": (lambda data: b"", "no record for the train split"),
}


@pytest.mark.parametrize("how", FILES)
def test_broken_files(folder, tmp_path, how, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    breaks, message = FILES[how]
    record = encoded(first_record(folder))
    path = write(copied(folder, tmp_path) / "part-0.tfrecord", [record, record])
    path.write_bytes(breaks(path.read_bytes()))
    with pytest.raises(UserError, match=message) as raised:
        open_premasked(tmp_path).train.read(range(2))
    assert str(raised.value).startswith(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_not_an_example(folder, tmp_path):
    write(copied(folder, tmp_path) / "part-0.tfrecord", [b"The president"])
    with pytest.raises(UserError, match=r"/part-0\.tfrecord: record 1: not a tf\.train\.Example"):
        open_premasked(tmp_path)


def test_casing_must_be_known(folder, tmp_path):
    (copied(folder, tmp_path) / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r'tokenizer_config.json: missing.*"do_lower_case": true'):
        open_premasked(tmp_path)

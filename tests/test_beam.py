"""Stores that Apache Beam prepares: they are those of one process."""

import argparse
import contextlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import beam_in_one_process
import pytest
from etils import epath

from bert_jax.cli import prepare as cli
from bert_jax.data import beam, wordpiece
from bert_jax.data.beam import beam_job
from bert_jax.data.documents import SkippedRecords, find_sources, read_documents
from bert_jax.data.filters import Filtering, find_filters
from bert_jax.data.heldout_documents import training_texts
from bert_jax.data.store_writer import append_to_store, write_store
from bert_jax.data.train_tokenizer import finds_pieces, train_tokenizer
from bert_jax.errors import UserError

pytestmark = pytest.mark.core

SHARD_TOKENS = 3000
FILTERS = ("exact_duplicates", "extensions.cleaning:without_notices")


def tree(path):
    files = (p for p in Path(path).rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of one, of many and of no documents, with copies and a record that cannot be read."""
    folder = tmp_path_factory.mktemp("corpus")
    found = list(read_documents(find_sources(["corpus:sotu"])))
    texts = [text[: 30_000 if i == 7 else 900 + 40 * i] for i, text in enumerate(found[:38])]
    texts += [texts[3], "We use cookies.", texts[20], ""]
    for number, (start, stop) in enumerate([(0, 1), (1, 2), (2, 20), (20, 20), (20, None)]):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[start:stop]]
        (folder / f"{number}.jsonl").write_text("".join(lines) + "broken\n" * (number == 2))
    return folder


@contextlib.contextmanager
def measured(corpus, output, filters):
    """A job whose documents are measured, and those that one process would take."""
    skipped = SkippedRecords()
    skipped.count = 7  # of a look at the first documents
    sources = find_sources([str(corpus)], refuse=skipped)
    found = find_filters(filters)
    filtering, expected = Filtering(found), Filtering(found)
    options = {"runner": "direct", "options": [], "workers": 2}
    with beam_job(sources, skipped, found, epath.Path(output), **options) as job:
        job.measure(filtering, SHARD_TOKENS)
        texts = list(expected(read_documents(sources)))
        assert filtering.counts == expected.counts
        assert job.skipped == 1
        yield job, texts


@pytest.mark.parametrize("filters", [(), FILTERS])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_stores_of_many_shards(corpus, tmp_path, monkeypatch, filters, kind):
    """With so many pieces that rare ones are dropped, also within a chunk."""
    beam_in_one_process.install(monkeypatch)
    for module in (wordpiece, beam):
        monkeypatch.setattr(module, "MAX_COUNTED_PIECES", 2000)
    with measured(corpus, tmp_path / "beam", filters) as (job, texts):
        counts = job.count_pieces(kind, 0.2, 0.0)
        training = training_texts(texts, 0.2, 0.0)
        expected = wordpiece.count_pieces(training, finds_pieces(kind))
        assert [*counts.items()] == [*expected.items()]
        assert 1 not in expected.values() or len(expected) < 2000
        tokenizer = train_tokenizer(kind, counts, vocab_size=500)
        given = {"heldout_bound": 0.2, "provenance": {}, "shard_tokens": SHARD_TOKENS}
        write_store(tmp_path / "beam", job, tokenizer, **given)
    store = write_store(tmp_path / "local", texts, tokenizer, **given)
    assert len(store.shards["train"]) > 4
    assert tree(tmp_path / "beam") == tree(store.path)
    assert {path.name for path in tmp_path.iterdir()} == {"beam", "local"}


def test_documents_are_added(corpus, tmp_path, monkeypatch):
    beam_in_one_process.install(monkeypatch)
    tokenizer = train_tokenizer("wordpiece", ["one two two three three"], vocab_size=100)
    first = write_store(
        tmp_path / "local", ["One. Two.", "Three."], tokenizer, heldout_bound=0.2, provenance={}
    )
    shutil.copytree(first.path, tmp_path / "beam")
    given = {"provenance": {"sources": []}, "shard_tokens": SHARD_TOKENS}
    with measured(corpus, tmp_path / "beam", ()) as (job, texts):
        append_to_store(tmp_path / "beam", job, **given)
    store = append_to_store(tmp_path / "local", texts, **given)
    assert len(store.shards["train"]) > 4
    assert tree(tmp_path / "beam") == tree(store.path)


def test_mistakes(corpus, tmp_path, monkeypatch, capsys):
    command = [str(corpus), f"--output={tmp_path / 'store'}"]
    with pytest.raises(SystemExit):
        cli.main([*command, "--beam-option=region=us"])
    assert "--beam-option needs a --runner" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match="--runner needs Apache Beam: pip install apache-beam"):
        cli.main([*command, "--runner=spark", "--skip-bad-lines"])
    beam_in_one_process.install(monkeypatch)
    with pytest.raises(UserError, match=r"store: workers of Dataflow see gs:// only"):
        cli.main([*command, "--runner=dataflow", "--skip-bad-lines"])
    with pytest.raises(UserError, match=r"--beam-option=--region=us: must be NAME or NAME=VALUE"):
        cli.main([*command, "--runner=direct", "--beam-option=--region=us", "--skip-bad-lines"])
    with pytest.raises(UserError, match=r"2.jsonl, line 19: .*; or leave such records out"):
        cli.main([*command, "--runner=direct"])
    assert not list(tmp_path.iterdir())


class _Timeout(Exception):
    """As that of gRPC, it says nothing."""


class _Details(Exception):
    def details(self):
        return "failed to connect\nto all addresses"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("Unable to fetch\n  the job server jar."),
            "Unable to fetch the job server jar",
        ),
        (FileNotFoundError(2, "No such file or directory", "java"), r"\[Errno 2\] No .*: 'java'"),
        (_Timeout(), r"its job server does not answer \(_Timeout\)"),
        (_Details(), "failed to connect to all addresses"),
        (RuntimeError("Traceback (most recent):\n  here\nKeyError: 3\n"), "KeyError: 3"),
    ],
)
def test_a_cluster_that_cannot_be_used(corpus, tmp_path, monkeypatch, error, told):
    """What its runner says is one line; nothing stays behind."""

    def pipeline(options):
        raise error

    install_beam(monkeypatch, pipeline, lambda self: {})
    command = [str(corpus), f"--output={tmp_path / 'store'}", "--skip-bad-lines"]
    message = f"--runner=flink: Beam cannot run the job: {told}. Give the cluster"
    with pytest.raises(UserError, match=message) as found:
        cli.main([*command, "--runner=flink"])
    assert "\n" not in str(found.value)
    with pytest.raises(type(error)):  # not a matter of clusters
        cli.main([*command, "--runner=direct"])
    assert not list(tmp_path.iterdir())


def test_an_option_that_beam_does_not_take(corpus, tmp_path, monkeypatch):
    def all_options(self):
        parser = argparse.ArgumentParser()
        parser.add_argument("--parallelism", type=int)
        parser.parse_known_args(self.flags)

    install_beam(monkeypatch, None, all_options)
    command = [str(corpus), f"--output={tmp_path / 'store'}", "--skip-bad-lines", "--runner=flink"]
    with pytest.raises(UserError) as found:
        cli.main([*command, "--beam-option=parallelism=many"])
    assert str(found.value) == "--beam-option: argument --parallelism: invalid int value: 'many'"


def install_beam(monkeypatch, pipeline, all_options):
    """A Beam that only gets as far as its options and its pipeline."""

    class Options:
        get_all_options = all_options

        def __init__(self, flags):
            self.flags = flags

    module = SimpleNamespace(Pipeline=pipeline)
    monkeypatch.setitem(sys.modules, "apache_beam", module)
    monkeypatch.setitem(sys.modules, "apache_beam.options", SimpleNamespace())
    options = SimpleNamespace(PipelineOptions=Options)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", options)


@pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="needs Apache Beam")
def test_processes_of_beam(corpus, tmp_path):
    """From the command line, with a new vocabulary; and the error of a worker is told in a line."""
    options = ["--vocab-size=500", "--filter=exact_duplicates", "--workers=2"]
    runner = ["--runner=direct", "--beam-option=default_sdk_harness_log_level=ERROR"]
    for name, more in (("local", []), ("beam", runner)):
        cli.main([str(corpus), f"--output={tmp_path / name}", *options, "--skip-bad-lines", *more])
    assert tree(tmp_path / "beam") == tree(tmp_path / "local")
    with pytest.raises(UserError, match=r"2.jsonl, line 19: .*; or leave such records out: --skip"):
        cli.main([str(corpus), f"--output={tmp_path / 'other'}", *options, *runner])
    assert {path.name for path in tmp_path.iterdir()} == {"beam", "local"}

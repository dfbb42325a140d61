"""Stores that Apache Beam prepares, in several processes: they are those of one process."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from bert_jax.api.prepare import prepare
from bert_jax.cli import prepare as cli
from bert_jax.data import beam, wordpiece
from bert_jax.data.documents import SkippedRecords, find_sources, read_documents
from bert_jax.data.filters import Filtering, find_filters
from bert_jax.data.store_writer import append_to_store, write_store
from bert_jax.data.train_tokenizer import train_tokenizer
from bert_jax.errors import UserError

pytestmark = pytest.mark.core
FILTERS = ("exact_duplicates", "extensions.cleaning:without_notices")


def tree(path):
    files = (p for p in Path(path).rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def texts():
    """40 documents, one of them long, two of them copies."""
    found = list(read_documents(find_sources(["corpus:sotu"])))
    texts = [text[: 30_000 if i == 7 else 900 + 40 * i] for i, text in enumerate(found[:38])]
    return [*texts, texts[3], "We use cookies.", texts[20]]


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    """Files of one, of many and of no documents, one record of which cannot be read."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, (start, stop) in enumerate([(0, 1), (1, 2), (2, 20), (20, 20), (20, 41)]):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[start:stop]]
        (folder / f"{number}.jsonl").write_text("".join(lines) + "broken\n" * (number == 2))
    return folder


class InOneProcess:
    """Runs the stages of a job as Beam does, in an order of its own, some of them twice."""

    def _run(self, count, stage):
        for number in [*reversed(range(count)), 0]:
            stage(self.folder, number)

    def _run_by_chunk(self, stage):
        groups = {}
        for number in reversed(range(self.num_sources)):
            for key, part in beam._texts_by_chunk(self.folder, number):
                groups.setdefault(key, []).append(part)
        results = [beam._of_chunk(self.folder, stage, *item) for item in groups.items()]
        beam._keep(self.folder, results)


@pytest.fixture
def in_one_process(monkeypatch):
    """Apache Beam is not needed: only what surrounds it is tested."""
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", object())
    for name in ("_run", "_run_by_chunk"):
        monkeypatch.setattr(beam.BeamJob, name, vars(InOneProcess)[name])


def sources_of(corpus, output, filters=()):
    skipped = SkippedRecords()
    sources = find_sources([str(corpus)], refuse=skipped)
    filtering = Filtering(found := find_filters(filters))
    job = beam.beam_job(
        sources, skipped, found, output, runner="direct", options=[], workers=2
    )
    return sources, filtering, skipped, job


@pytest.mark.parametrize("filters", [(), FILTERS])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_stores_of_many_shards(corpus, tmp_path, in_one_process, monkeypatch, filters, kind):
    """Pieces are so many that rare ones are dropped, within chunks and where they end."""
    monkeypatch.setattr(wordpiece, "MAX_COUNTED_PIECES", 2000)
    monkeypatch.setattr(beam, "MAX_COUNTED_PIECES", 2000)
    output = tmp_path / "beam"
    sources, filtering, skipped, job = sources_of(corpus, beam.epath.Path(output), filters)
    with job as job:
        job.measure(filtering, 3000)
        counts = job.count_pieces(kind, 0.2, 0.0)
        tokenizer = train_tokenizer(kind, counts, vocab_size=500)
        given = {"heldout_bound": 0.2, "provenance": {}, "shard_tokens": 3000}
        write_store(output, job, tokenizer, num_skipped=lambda: job.skipped, **given)
    left = list(filtering(read_documents(sources)))
    expected = beam.count_pieces(
        beam.training_texts(left, 0.2, 0.0), beam.finds_pieces(kind)
    )
    assert [*counts.items()] == [*expected.items()]
    assert len(expected) < 2000
    local = write_store(tmp_path / "local", left, tokenizer, num_skipped=lambda: 1, **given)
    assert len(local.shards["train"]) > 4
    assert tree(output) == tree(tmp_path / "local")
    assert {path.name for path in tmp_path.iterdir()} == {"beam", "local"}

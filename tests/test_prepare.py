"""The verb `prepare`, as a user runs it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bert_jax.cli import prepare
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.store import document_hash, verify_store
from bert_jax.data.stores import open_store
from bert_jax.data.wordpiece import train_wordpiece
from bert_jax.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tenth of the carried corpus as JSONL."""
    path = tmp_path_factory.mktemp("corpus") / "tenth.jsonl"
    texts = list(read_documents(find_sources(["corpus:sotu"])))[::10]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    run(corpus, "--output", path, "--vocab-size", 2000, "--workers", 1, "--heldout", 0.2)
    return path


def run(*arguments):
    prepare.main([str(argument) for argument in arguments])


def test_trains_a_vocabulary_on_the_training_documents(prepared, corpus):
    verify_store(prepared)
    store = open_store(prepared)
    texts = list(read_documents(find_sources([str(corpus)])))
    train = [text for text in texts if document_hash(text) >= store.manifest["heldout_bound"]]
    assert 2 <= len(texts) - len(train) < len(texts) - 2
    assert store.wordpiece == train_wordpiece(train, vocab_size=2000)
    assert store.wordpiece != train_wordpiece(texts, vocab_size=2000)


def test_second_run_reuses_the_store(prepared, corpus, capsys):
    before = os.stat(prepared / "manifest.json").st_mtime_ns
    run(corpus, "--output", prepared, "--vocab-size", 2000, "--heldout", 0.2)
    output = capsys.readouterr().out
    assert "nothing to do" in output
    assert "train" in output
    assert os.stat(prepared / "manifest.json").st_mtime_ns == before


def test_another_request_for_the_same_folder_is_refused(prepared, corpus, tmp_path):
    same = (corpus, "--output", prepared, "--vocab-size", 2000, "--heldout", 0.2)
    for change, message in (
        (("--vocab-size", 3000), r"other --vocab-size \(2000 there, 3000 now\); choose another"),
        (("--cased",), r"other --cased \(False there, True now\)"),
        (("--no-strip-accents",), r"other --strip-accents \(None there, False now\)"),
        (("--unwrap", "--heldout", 0.1), r"other --heldout \(.*\), --unwrap \(.*\);"),
    ):
        with pytest.raises(UserError, match=message):
            run(*same, *change)
    other = tmp_path / "tenth.jsonl"
    other.write_text(corpus.read_text().replace("Congress", "congress"))
    with pytest.raises(UserError, match="other sources; choose"):
        run(other, *same[1:])


def test_case_and_accents_apart(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("Élan É. E elan é.\n\n" * 4, encoding="utf-8")
    for flags, there, summary in (
        ((), ["elan", "elan"], "uncased\n"),
        (("--lowercase", "--no-strip-accents"), ["élan", "elan"], "uncased, accents kept"),
        (("--no-lowercase", "--strip-accents"), ["Elan", "elan"], "cased, accents stripped"),
        (("--cased",), ["Élan", "elan"], "cased\n"),
    ):
        output = tmp_path / "-".join(["store", *flags])
        run(text, "--output", output, "--vocab-size", 100, "--workers", 1, *flags)
        wordpiece = open_store(output).wordpiece
        assert [wordpiece.vocab[ids[0]] for ids in wordpiece.encode(["Élan", "elan"])] == there
        assert summary in capsys.readouterr().out


def test_takes_the_vocabulary_of_another_store(prepared, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("One text of Congress.\n\nAnother text. It has two sentences.\n")
    run(text, "--output", tmp_path / "store", "--vocab", prepared, "--workers", 1)
    store = open_store(tmp_path / "store")
    assert store.wordpiece == open_store(prepared).wordpiece
    assert len(store.train.documents) == len(store.heldout.documents) == 2
    assert "next-sentence pairs need two" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heldout", "0"), "--heldout"),
        (("--heldout", "5"), "--heldout"),
        (("--workers", "0"), "--workers"),
        (("--vocab-size", "7"), "vocab_size"),
        (("--vocab", "nowhere/vocab.txt"), "no such vocabulary"),
    ],
)
def test_bad_arguments(corpus, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run(corpus, "--output", tmp_path / "store", *arguments)
    assert not list(tmp_path.iterdir())


def test_bad_records_are_skipped_in_every_pass(tmp_path, caplog, capsys):
    records = [json.dumps({"text": f"Text {i} is about cats. They sleep."}) for i in range(40)]
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("\n".join(records))
    records[:0] = ['{"text": null}']
    records[9:9] = ['{"text": "cut sho', "[" * 100_000]
    records += [r'{"text": "cut \ud83d"}']
    bad.write_text("\n".join(records))
    flags = ("--vocab-size", 100, "--heldout", 0.2)
    with pytest.raises(UserError, match=r"line 1: field .*; or leave such .*: --skip-bad-lines"):
        run(bad, "--output", tmp_path / "store", *flags)

    run(good, "--output", tmp_path / "good", *flags, "--workers", 1)
    fingerprint = open_store(tmp_path / "good").fingerprint
    assert "could not be read" not in capsys.readouterr().out
    for name, more in (
        ("one", ("--workers", 1)),
        ("two", ("--workers", 2)),
        ("given", ("--vocab", tmp_path / "good")),
    ):
        output = tmp_path / name
        run(
            bad,
            "--output",
            output,
            "--skip-bad-lines",
            *(flags if name != "given" else flags[2:]),
            *more,
        )
        store = open_store(output)
        assert store.fingerprint == fingerprint
        assert store.manifest["skipped_records"] == 4
        assert "4 records that could not be read were left out" in capsys.readouterr().out
    assert len([r for r in caplog.records if r.message.startswith("skipped: ")]) == 3
    run(bad, "--output", tmp_path / "one", "--skip-bad-lines", *flags)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"other --skip-bad-lines \(True there, None now\)"):
        run(bad, "--output", tmp_path / "one", *flags)


def test_empty_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no text to train a vocabulary on"):
        run(tmp_path / "a.txt", "--output", tmp_path / "store")


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers through /proc")
def test_killed_midway(prepared, tmp_path):
    output = tmp_path / "store"
    command = [sys.executable, "-m", "bert_jax", "prepare", "corpus:sotu", "--vocab", prepared]
    command += ["--output", output, "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    tokens = tmp_path / "store.unfinished" / "train" / "tokens.bin"
    while not (tokens.exists() and tokens.stat().st_size):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # so that it does not finish meanwhile
    with pytest.raises(UserError, match="another process is writing"):
        run("corpus:sotu", "--vocab", prepared, "--output", output, "--workers", 1)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert not output.exists()
    with pytest.raises(UserError, match="not finished"):
        open_store(output)
    deadline = time.monotonic() + 600
    while any(alive(int(pid)) for pid in children.split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children.split() if alive(int(pid))], "workers outlive the run"

    subprocess.run(command, check=True, capture_output=True)
    verify_store(output)
    assert not tokens.exists()
    run("corpus:sotu", "--vocab", prepared, "--output", tmp_path / "calm", "--workers", 1)
    assert open_store(output).fingerprint == open_store(tmp_path / "calm").fingerprint


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as exit_:
        run("--help")
    assert exit_.value.code == 0
    assert "bert-jax prepare corpus:sotu --output" in capsys.readouterr().out

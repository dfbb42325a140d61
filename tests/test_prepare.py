"""The verb `prepare`, as a user runs it."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from bert_jax.cli import prepare
from bert_jax.data import estimates
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.heldout_documents import document_hash
from bert_jax.data.sampling import Sampling, plan_epoch
from bert_jax.data.store import verify_store
from bert_jax.data.stores import open_store
from bert_jax.data.wordpiece import SPECIAL_TOKENS, train_wordpiece
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
    assert store.tokenizer == train_wordpiece(train, vocab_size=2000)
    assert store.tokenizer != train_wordpiece(texts, vocab_size=2000)


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
        wordpiece = open_store(output).tokenizer
        assert [wordpiece.vocab[ids[0]] for ids in wordpiece.encode(["Élan", "elan"])] == there
        assert summary in capsys.readouterr().out


def test_takes_the_vocabulary_of_another_store(prepared, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("One text of Congress.\n\nAnother text. It has two sentences.\n")
    run(text, "--output", tmp_path / "store", "--vocab", prepared, "--workers", 1)
    store = open_store(tmp_path / "store")
    assert store.tokenizer == open_store(prepared).tokenizer
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


def test_dry_run_writes_nothing(prepared, corpus, tmp_path, capsys, monkeypatch):
    """A small corpus is counted, of a larger one a part is read."""
    counts = open_store(prepared).manifest["splits"]
    flags = (corpus, "--vocab", prepared, "--dry-run")
    monkeypatch.chdir(tmp_path)
    run(*flags, "--output", tmp_path / "store", "--workers", 2)
    printed = capsys.readouterr().out
    assert f"{corpus.stat().st_size:>16,} tenth.jsonl\n" in printed
    documents, tokens = (sum(counts[s][name] for s in counts) for name in ("documents", "tokens"))
    assert f"\n{documents:,} documents, {tokens:,} tokens, by all of it\n" in printed
    assert "with 2 worker(s); nothing was written" in printed
    run(*flags, "--filter", "length:minimum=30000")
    assert "filter length:minimum=30000: " in capsys.readouterr().out

    monkeypatch.setattr(estimates, "SAMPLED_CHARACTERS", 400_000)
    run(*flags)
    found = re.search(r"about ([\d,]+) documents, about ([\d,]+) tokens", capsys.readouterr().out)
    about = [int(number.replace(",", "")) for number in found.groups()]
    assert about == pytest.approx([documents, tokens], rel=0.3)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        run(corpus)
    assert "a SOURCE and --output, or --dry-run, are required" in capsys.readouterr().err


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


def summary_of(capsys, tmp_path, text, *options):
    """What is printed for a .txt file of this text, and the store."""
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    run(tmp_path / "a.txt", "--output", tmp_path / "store", "--workers", 1, *options)
    return capsys.readouterr().out, open_store(tmp_path / "store")


def sentences(number, of="one two three four five six seven eight"):
    words = of.split()
    return " ".join(f"{words[i % 8].title()} {words[i % 7]} {words[i % 5]}." for i in range(number))


def test_one_document_is_trained_on_without_its_end(capsys, tmp_path):
    text = f"{sentences(95)} {sentences(5, of='nine ' * 8)}"
    output, store = summary_of(capsys, tmp_path, text, "--vocab-size", 80)
    assert "Warning: there is one document, whose end is held out, and" in output
    assert "--config.data.pairs=none" in output
    assert len(store.train.sentences) - 1 == 95
    assert len(store.heldout.sentences) - 1 == 5
    assert "nine" not in store.tokenizer.vocab
    rows, options = np.arange(4), {"batch_size": 4, "max_seq_length": 16}
    sampling = Sampling(pairs="none", **options)
    assert (
        store.training_batches(sampling, seed=0, host_rows=lambda _: rows)
        .batch(0)["input_ids"]
        .any()
    )
    assert list(store.heldout_batches(sampling, num_batches=0, host_rows=rows))
    with pytest.raises(UserError, match=r"only one: .*--config\.data\.pairs to sop or none"):
        store.training_batches(Sampling(pairs="nsp", **options), seed=0, host_rows=lambda _: rows)


def test_chapters_are_documents(capsys, tmp_path):
    chapter = f"{sentences(9)}\n\n{sentences(9)}\n"
    text = "".join(
        f" CHAPTER {number}. \n{chapter} {number}.\n" for number in ("I", "II", "IV", "X")
    )
    separator = ("--document-separator", r"CHAPTER [IVX]+\.")
    output, store = summary_of(capsys, tmp_path, text, "--vocab-size", 80, *separator)
    assert store.manifest["splits"]["train"]["documents"] == 2
    assert store.manifest["splits"]["heldout"]["documents"] == 2
    assert "Warning" not in output
    with pytest.raises(
        UserError, match=r"other --document-separator \(CHAPTER .* there, None now\)"
    ):
        summary_of(capsys, tmp_path, text, "--vocab-size", 80)
    with pytest.raises(UserError, match=r"--document-separator: '\(' is no regular expression"):
        summary_of(capsys, tmp_path, text, "--document-separator", "(")


def test_what_an_epoch_uses_is_told(capsys, tmp_path):
    """Of documents of one sentence, the pairs are all random."""
    texts = [f"{sentences(40)} End {number}.\n\n" for number in range(40)]
    output, store = summary_of(capsys, tmp_path, "".join(texts), "--vocab-size", 80)
    train = store.train
    plan = plan_epoch(
        train.sentences, train.documents, Sampling(max_seq_length=128), seed=0, epoch=0
    )
    used = plan.a_length.sum() + plan.b_length[plan.next_sentence_label == 0].sum()
    share, random = used / len(train.tokens), plan.next_sentence_label.mean()
    assert store.manifest["epoch"] == pytest.approx({"tokens": share, "label_1": random})
    assert share > 0.95
    assert f"{share:.1%} of the tokens used in an epoch, {random:.0%} of the pairs random" in output
    assert "0.0% of the documents are one sentence" in output
    assert "Warning" not in output

    (tmp_path / "one").mkdir()
    texts = [f"{sentences(1)[:-1]} end {number}.\n\n" for number in range(40)]
    output, store = summary_of(capsys, tmp_path / "one", "".join(texts), "--vocab-size", 80)
    assert store.manifest["epoch"]["label_1"] == 1
    assert "100.0% of the documents are one sentence" in output
    assert "Warning: 100% of the next-sentence pairs are random" in output
    assert "--config.data.pairs=none" in output


def test_lost_characters_are_told(capsys, tmp_path):
    """A word is one [UNK], however long."""
    texts = [f"{sentences(3)} {'ab' * 60} Œœ{number}.\n\n" for number in range(20)]
    letters = tmp_path / "vocab.txt"
    letters.write_text("\n".join((*SPECIAL_TOKENS, ".", *"abcdefghijklmnopqrstuvwxyz", "")))
    pieces = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    letters.write_text(letters.read_text() + "\n".join([*pieces, ""]))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    text = "".join(texts)
    output, store = summary_of(capsys, tmp_path, text, "--vocab", letters)
    train, heldout = (store.manifest["splits"][split] for split in ("train", "heldout"))
    total = train["documents"] + heldout["documents"]
    assert total == 20
    assert train["characters"] + heldout["characters"] == len("".join(text.split()))
    assert train["long_word_characters"] == 120 * train["documents"]
    unknown = train["unknown_characters"] + heldout["unknown_characters"]
    assert unknown == 20 * 120 + 10 * 3 + 10 * 4
    assert f"{train['unknown_characters'] / train['characters']:.3%}" in output
    assert "of the characters are in words of more than 100 characters" in output
    assert "Thai" in output
    assert "of the characters are in other words that the vocabulary lacks" in output


def test_nothing_but_unknown_words(capsys, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join((*SPECIAL_TOKENS, "a", "")))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(UserError, match="every word is \\[UNK\\]"):
        summary_of(capsys, tmp_path, "Ω ω.\n\nΨ ψ.\n", "--vocab", tmp_path / "vocab.txt")
    assert not (tmp_path / "store").exists()
    text = "a Ω.\n\na Ψ.\n\na Φ.\n\na Σ.\n"
    _, store = summary_of(capsys, tmp_path, text, "--vocab", tmp_path / "vocab.txt")
    store.check(Sampling(), 20, "config")
    counts = np.array([0, 9, 0, 0, 0, 0])
    unknown = dataclasses.replace(store, totals={"train": counts})
    with pytest.raises(UserError, match=r"store: train split: every word is \[UNK\]"):
        unknown.check(Sampling(), 20, "config")


def test_hard_wrapped_text_is_told(capsys, tmp_path):
    prose = sentences(400, of="alpha be gamma delta ex zeta eta theta").replace(". Be", ", be")
    wrapped = [textwrap.fill(prose, width) for width in (72, 72, 70, 72)]
    verse = "\n".join(prose[i : i + 20 + i % 37].strip() for i in range(0, 5000, 60))
    warning = "lines break within sentences, at about 72 characters"
    for name, texts, options, is_told in (
        ("wrapped", wrapped, (), True),
        ("unwrapped", wrapped, ("--unwrap",), False),
        ("lines", [prose.replace(". ", ".\n")] * 4, (), False),
        ("verse", [verse] * 4, (), False),
    ):
        (tmp_path / name).mkdir()
        text = "\n\n".join(f"{number} {text}" for number, text in enumerate(texts))
        output, _ = summary_of(capsys, tmp_path / name, text, "--vocab-size", 80, *options)
        assert (warning in output) == is_told, name
        assert ("--unwrap" in output) == is_told


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
    with pytest.raises(UserError, match=rf"store: in use by process {process.pid} on"):
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

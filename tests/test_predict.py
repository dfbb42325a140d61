"""`bert-jax predict`: files in, files out."""

import io
import json
import re
import sys

import numpy as np
import pytest
from portables import make_portable

from bert_jax import load
from bert_jax.__main__ import main
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.heads import PRETRAINING

pytestmark = pytest.mark.core

TEXTS = [
    "Fellow citizens.",
    'A "quoted" line — with a dash.',
    "Peace, and " * 30,
    "We are at peace.",
]
PAIRS = [("We are at peace.", "Let it last."), ("The Union is strong.", "Thank you.")]


@pytest.fixture(scope="module")
def model(sotu_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("predict") / "model"
    write_workdir(path, make_portable(load_wordpiece(sotu_store), PRETRAINING))
    return path


@pytest.fixture(scope="module")
def bert(model):
    return load(model)


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    return file


def features(model, file, output, *options) -> int:
    arguments = [f"--model={model}", str(file), f"--output={output}", *options]
    return main(["predict", "features", *arguments])


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_npy(model, bert, text_file, tmp_path):
    output = tmp_path / "vectors.npy"
    assert features(model, text_file, output) == 0
    found = np.load(output)
    assert found.dtype == np.float32
    assert_close(found, bert.encode(TEXTS))
    assert features(model, text_file, output, "--layers=0,-1", "--pooling=cls") == 0
    assert_close(np.load(output, mmap_mode="r"), bert.encode(TEXTS, "cls", [0, -1]))
    assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", "vectors.npy"}


def test_jsonl(model, bert, tmp_path, capsys):
    """Fields of the input go through; singles and pairs may alternate."""
    lines = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    lines += [{"text_b": b, "text_a": a, "gold": None} for a, b in PAIRS]
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert features(model, file, output, "--pooling=pooled") == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    vectors = [line.pop("vector") for line in found]
    assert found == lines
    assert_close(vectors, bert.encode(TEXTS + PAIRS, "pooled"))

    arguments = [f"--model={model}", str(file), "--pooling=tokens"]
    assert main(["predict", "features", *arguments]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, text, expected in zip(found, TEXTS + PAIRS, bert.encode(TEXTS + PAIRS, "tokens")):
        assert line["tokens"] == bert.tokens(text)
        assert_close(line["vectors"], expected)


def test_parquet(model, bert, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("bert_jax.inference.vector_files.ROW_GROUP", 2)
    file, output = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    lines = [{"text": text} for text in TEXTS] + [{"text_a": a, "text_b": b} for a, b in PAIRS[:1]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert features(model, file, output) == 0
    table = parquet.read_table(output)
    assert table["line"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["text_a"].to_pylist() == [*TEXTS, PAIRS[0][0]]
    assert table["text_b"].to_pylist() == [None] * 4 + [PAIRS[0][1]]
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[128]"
    texts = TEXTS + PAIRS[:1]
    assert_close(table["vector"].to_pylist(), bert.encode(texts))

    assert features(model, file, output, "--pooling=tokens", "--layers=1,2") == 0
    table = parquet.read_table(output)
    assert table["tokens"].to_pylist() == [bert.tokens(text) for text in texts]
    for found, expected in zip(table["vectors"].to_pylist(), bert.encode(texts, "tokens", [1, 2])):
        assert_close(found, expected)


def test_parquet_without_pyarrow(model, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert features(model, text_file, tmp_path / "out.parquet") == 2
    assert "Parquet needs pyarrow: pip install pyarrow" in capsys.readouterr().err


def test_next_sentence(model, bert, tmp_path, monkeypatch, capsys):
    expected = bert.next_sentence(PAIRS)
    content = "".join(f"{a}\t{b}\r\n" for a, b in PAIRS).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + content)))
    assert main(["predict", "next-sentence", f"--model={model}"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["text_a"], line["text_b"]) for line in found] == PAIRS
    assert_close([line["probability"] for line in found], expected)

    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"text_a": a, "text_b": b}) + "\n" for a, b in PAIRS))
    assert main(["predict", "next-sentence", f"--model={model}", str(file)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found


def test_fill_mask(model, bert, monkeypatch, capsys):
    masked = ["The [MASK] is [MASK].", "[MASK] [MASK] [MASK]"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{masked[0]}\n\n{masked[1]}\n"))
    assert main(["predict", "fill-mask", f"--model={model}", "--top-k=2"]) == 0
    lines = iter(capsys.readouterr().out.splitlines())
    for text, masks in zip(masked, bert.fill_mask(masked, top_k=2)):
        assert next(lines) == text
        for first, second in masks:
            guesses = re.fullmatch(r"   (\S+) ([\d.]+)%  (\S+) ([\d.]+)%", next(lines))
            assert (guesses[1], guesses[3]) == (first.token, second.token)
            assert float(guesses[2]) == pytest.approx(100 * first.probability, abs=0.06)
    assert not list(lines)


BAD_LINES = {
    "empty.txt": (b"one\n \ntwo\n", r"line 2: empty text"),
    "latin1.txt": ("one\nCaf\xe9\ntwo\n".encode("latin-1"), r"line 2: byte 4 is not UTF-8"),
    "plain.jsonl": (b'{"text": "one"}\ntwo\n{"text": "two"}\n', r"line 2: not JSON \(Expecting"),
    "list.jsonl": (b'{"text": "one"}\n["two"]\n{"text": "two"}\n', r"line 2: not a JSON object"),
    "other.jsonl": (
        b'{"text": "one"}\n{"body": "two"}\n{"text": "two"}\n',
        r"line 2: no text in text_a; there must be text, or text_a and text_b \[body\]",
    ),
    "number.jsonl": (
        b'{"text": "one"}\n{"text": 2}\n{"text": "two"}\n',
        r"line 2: no text in text; ",
    ),
    "half.jsonl": (
        b'{"text": "one"}\n{"text_a": "a", "text_b": ""}\n{"text": "two"}\n',
        r"line 2: empty text",
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line(model, bert, tmp_path, capsys, name):
    content, message = BAD_LINES[name]
    file, output = tmp_path / name, tmp_path / "out.npy"
    file.write_bytes(content)
    output.write_bytes(b"of before")
    assert features(model, file, output) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"{name}, {message}", error)
    assert error.endswith("; fix it or pass --skip-bad-lines")
    assert output.read_bytes() == b"of before"
    assert {path.name for path in tmp_path.iterdir()} == {name, "out.npy"}

    assert features(model, file, output, "--skip-bad-lines") == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"bad lines skipped: 1; .*{name}, {message}", note)
    assert_close(np.load(output), bert.encode(["one", "two"]))


def test_bad_pair(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "pairs.tsv").write_text("a\tb\nc\td\te\n")
    (tmp_path / "single.jsonl").write_text('{"text": "a"}\n')
    command = ["predict", "next-sentence", f"--model={model}"]
    for name, message in {
        "pairs.tsv": "line 2: 3 fields; must be two texts with a tab between them; fix it",
        "single.jsonl": "line 1: no text in text_a; there must be text_a and text_b [text]; fix",
    }.items():
        assert main([*command, str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\tb\nc\n")))
    assert main(command) == 2
    assert "standard input, line 2: 1 fields; must be two texts" in capsys.readouterr().err


MISTAKES = {
    "gone.txt --output={tmp}/out.npy": r"gone\.txt: no such file",
    "{tmp}/empty.txt --output={tmp}/out.npy": r"empty\.txt: no text to read",
    "{tmp}/empty.txt --output={tmp}/out.csv": r"out\.csv: must be a local file that ends in",
    "{tmp}/empty.txt --output=gs://bucket/out.npy": r"gs://bucket/out\.npy: must be a local file",
    "{tmp}/empty.txt --output={tmp}/out.npy --pooling=tokens": r"texts differ in tokens; use \.js",
    "{tmp}/empty.txt --output={tmp}/gone/out.npy": r"gone/out\.npy\.unfinished: No such file",
    "{tmp}/empty.txt --output={tmp}/out.npy --layers=9": r"layer 9: there are 0 \(emb",
    "{tmp}/empty.txt --output={tmp}/out.npy --layers=x": r"argument --layers: invalid .* 'x'",
    "{tmp}/empty.txt --output={tmp}/out.npy --step=4": r"no checkpoint of step 4; there are \[0\]",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistake(model, tmp_path, capsys, arguments):
    (tmp_path / "empty.txt").touch()
    command = ["predict", "features", f"--model={model}", *arguments.format(tmp=tmp_path).split()]
    try:
        code = main(command)
    except SystemExit as exit_:  # argparse
        code = exit_.code
    assert code == 2
    assert re.search(MISTAKES[arguments], capsys.readouterr().err.splitlines()[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]

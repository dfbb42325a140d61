"""`bert-jax predict`: files in, files out."""

import contextlib
import datetime
import io
import json
import os
import re
import sys

import numpy as np
import pytest
from portables import make_portable

from bert_jax import load
from bert_jax.__main__ import main
from bert_jax.cli import inputs
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.inference.text_lines import Line, TextLines
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.heads import PRETRAINING
from bert_jax.terminal import json_line

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


def test_npy(model, bert, text_file, tmp_path, capsys):
    output = tmp_path / "vectors.npy"
    assert features(model, text_file, output) == 0
    hidden = bert.architecture.hidden_size
    told = f"{output}: vectors of {len(TEXTS)} texts, {hidden} numbers\n"
    assert capsys.readouterr().out == told
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
    assert capsys.readouterr().out.startswith(f"{output}: vectors of {len(lines)} texts, ")

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
    assert "Parquet and Arrow need pyarrow: pip install pyarrow" in capsys.readouterr().err


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
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(f"{masked[0]}\n\n{masked[1]}\n".encode()))
    )
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
    "latin1.txt": (
        "one\nCaf\xe9\ntwo\n".encode("latin-1"),
        r"line 2: byte 4 of the line is not UTF-8",
    ),
    "plain.jsonl": (b'{"text": "one"}\ntwo\n{"text": "two"}\n', r"line 2: not JSON \(Expecting"),
    "list.jsonl": (b'{"text": "one"}\n["two"]\n{"text": "two"}\n', r"line 2: list, not an object"),
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
    "gone.csv": r"gone\.csv: no such file",
    "{tmp} --output={tmp}/out.npy": r": a folder; name a file in it",
    "{tmp}/empty.txt --output={tmp}/out.npy": r"empty\.txt: no text to read",
    "{tmp}/empty.txt {tmp}/texts.txt": r"empty\.txt is a file: give one FILE, or texts",
    "a b c": r"3 texts on the command line: two TEXTs are a pair",
    "{tmp}/texts.txt --format=csv": r"texts\.txt, line 1: none of the columns text, .* in \[one\]",
    "{tmp}/texts.txt --format=json --columns=a,b,c": r"--columns=a,b,c: 3 columns",
    "{tmp}/empty.txt --output={tmp}/out.csv": r"out\.csv: must be a local file that ends in",
    "{tmp}/empty.txt --output=gs://bucket/out.npy": r"gs://bucket/out\.npy: must be a local file",
    "{tmp}/empty.txt --output={tmp}/out.npy --pooling=tokens": r"texts differ in tokens; use \.js",
    "{tmp}/texts.txt --output={tmp}/gone/out.npy": r"gone/out\.npy: No such file",
    "{tmp}/texts.txt --output={tmp}/out.npy --layers=9": r"layer 9: there are 0 \(emb",
    "{tmp}/texts.txt --output={tmp}/out.npy --layers=x": r"argument --layers: invalid .* 'x'",
    "{tmp}/texts.txt --output={tmp}/out.npy --step=4": r"no checkpoint of step 4; there are \[0\]",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistake(model, tmp_path, capsys, arguments):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "texts.txt").write_text("one\n")
    command = ["predict", "features", f"--model={model}", *arguments.format(tmp=tmp_path).split()]
    try:
        code = main(command)
    except SystemExit as exit_:  # argparse
        code = exit_.code
    assert code == 2
    assert re.search(MISTAKES[arguments], capsys.readouterr().err.splitlines()[-1])
    assert {path.name for path in tmp_path.iterdir()} == {"empty.txt", "texts.txt"}


UNUSABLE = {
    "empty.txt": (b"", "no text to read"),
    "blank.txt": (b"\n \n", r"line 1: empty text; fix it"),
    "blank.jsonl": (b"\n\n", "no text to read"),
    "header.csv": (b"text,label\n", "no text to read"),
    "other.csv": (b"review,label\ngood,1\n", r"line 1: none of the columns text, .* \[review, lab"),
    "other.tsv": (b"review\tlabel\ngood\t1\n", r"line 2: no text in text_a; .* \[review, label\]"),
    "twice.csv": (b"text,text\na,b\n", "line 1: two columns are called 'text'"),
    "open.csv": (b'text\n"one\n', r"line 2: not CSV \(unexpected end of data\)"),
    "number.json": (b"3", "line 1: int, not an object"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1: not usable JSON .*nested too deeply"),
    "half.jsonl": (b'{"text": "\\ud83d"}\n', r"line 1: \\ud83d is half a character"),
    "digits.jsonl": (b'{"text": ' + b"9" * 5000 + b"}\n", r"line 1: not JSON \(Exceeds the limit"),
    "binary.txt": (bytes(range(99, 256)), "line 1: byte 30 of the line is not UTF-8"),
    "image.png": (b"\x89PNG", "line 1: byte 1 of the line is not UTF-8"),
    "nothing.parquet": (b"PAR1", "nothing.parquet: not Parquet"),
    "texts.txt.gz": (b"no gzip", "texts.txt.gz: damaged or cut short"),
    "words.conll": (b"one O\n", "takes text, tsv, csv, jsonl, json, parquet; --format says which"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_is_checked_before_the_model_is_read(tmp_path, monkeypatch, capsys, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    content, message = UNUSABLE[name]
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("bert_jax.inference.trained.load", lambda *_, **__: pytest.fail("read"))
    command = ["predict", "features", "--model=none", str(tmp_path / name)]
    assert main(command) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(message, error)
    # Nothing else is left if bad lines are skipped.
    assert main([*command, "--skip-bad-lines"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(f"{message}|no text to read", error)


def test_standard_input_may_be_closed(monkeypatch, capsys):
    ours, theirs = os.pipe()
    os.write(theirs, b"\n")
    os.close(theirs)
    for stdin, message in (
        (None, "standard input is closed: name a FILE, or give a TEXT"),
        (os.fdopen(ours), "standard input, line 1: empty text"),
        (io.TextIOWrapper(io.BytesIO(b"")), "standard input: no text to read"),
        (io.TextIOWrapper(io.BytesIO(b"\xff\n")), "standard input, line 1: byte 1 of the line is"),
    ):
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["predict", "features", "--model=none"]) == 2
        assert message in capsys.readouterr().err


def test_tables_of_all_formats(model, bert, tmp_path, monkeypatch, capsys):
    """Rows keep their other columns; a bad one may be left out."""
    rows = [("1", 'A "quoted", text'), ("2", "two\nlines"), ("3", "three")]
    quoted = "".join('{},"{}"\n'.format(i, t.replace('"', '""')) for i, t in rows)
    given = {
        "t.csv": f"id,sentence\n{quoted}",
        "t.tsv": "id\tsentence\n" + quoted.replace(',"', '\t"'),
        "t.json": json.dumps([{"id": i, "text": t} for i, t in rows]),
        "t.jsonl": "\n" + "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in rows),
    }
    expected = bert.encode([text for _, text in rows])

    def vectors(*arguments):
        assert main(["predict", "features", f"--model={model}", *map(str, arguments)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    for name, content in given.items():
        (tmp_path / name).write_text(content)
        found = vectors(tmp_path / name)
        assert [(line["id"], line.get("text", line.get("sentence"))) for line in found] == rows
        assert_close([line["vector"] for line in found], expected)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given["t.csv"].encode())))
    found = vectors("--format=csv")
    assert_close([line["vector"] for line in found], expected)

    (tmp_path / "own.csv").write_text("3,three,four\n,,\n")
    found = vectors(tmp_path / "own.csv", "--columns=2,3", "--skip-bad-lines")
    assert_close([line["vector"] for line in found], bert.encode([("three", "four")]))
    (tmp_path / "long.csv").write_text("text\none\ntwo,too many\nthree\n")
    assert main(["predict", "features", f"--model={model}", str(tmp_path / "long.csv")]) == 2
    assert "line 3: 2 fields under a header of 1" in capsys.readouterr().err
    assert len(vectors(tmp_path / "long.csv", "--skip-bad-lines")) == 2


def test_texts_on_the_command_line(model, bert, capsys):
    command = ["predict", "features", f"--model={model}"]
    assert main([*command, "We are at peace."]) == 0
    assert main([*command, *PAIRS[0]]) == 0
    single, pair = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (single["text"], pair["text_a"], pair["text_b"]) == ("We are at peace.", *PAIRS[0])
    assert_close(single["vector"], bert.encode(["We are at peace."])[0])
    assert_close(pair["vector"], bert.encode([PAIRS[0]])[0])
    assert main(["predict", "next-sentence", f"--model={model}", *PAIRS[1]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert_close(found["probability"], bert.next_sentence([PAIRS[1]])[0])
    for texts, message in (
        (["alone"], "1 texts on the command line: two TEXTs are the pair"),
        (["a", " "], "a TEXT is empty"),
        (["a", "b\udcff"], r"'b\udcff' is not UTF-8"),
    ):
        assert main(["predict", "next-sentence", "--model=none", *texts]) == 2
        assert message in capsys.readouterr().err
    assert main(["predict", "fill-mask", "--model=none", "no mask"]) == 2


def test_a_text_without_a_mask_is_a_bad_line(model, tmp_path, capsys):
    (tmp_path / "masked.jsonl").write_text('{"text": "The [MASK]."}\n{"text": "The end."}\n')
    command = ["predict", "fill-mask", f"--model={model}", str(tmp_path / "masked.jsonl")]
    assert main(command) == 2
    assert "masked.jsonl, line 2: no [MASK] in the text; fix it or" in capsys.readouterr().err
    assert main([*command, "--skip-bad-lines"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "The [MASK]."


def test_fields_of_the_input_are_not_overwritten():
    line = Line(1, "a", {"text": "a", "label": "gold"})
    found = line.merged({"label": "guess"})
    assert found == {"text": "a", "input_label": "gold", "label": "guess"}


def test_a_parquet_table_may_hold_anything(model, tmp_path, capsys):
    pa = pytest.importorskip("pyarrow")
    columns = {"when": [datetime.date(2026, 11, 26)], "raw": [b"x"], "text": ["one"]}
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert main(["predict", "features", f"--model={model}", str(tmp_path / "t.parquet")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["when"], found["text"]) == ("2026-11-26", "one")


def test_a_tagger_reads_rows_with_words(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"tokens": ["AT&T", "sat"], "ner_tags": [1, 0]}, {"words": ["a"]}]
    rows += [{"text": "a b", "tokens": ["c"]}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lines = [*TextLines(str(file), "jsonl", inputs.WORDS.columns)]
    assert [line.text for line in lines] == [["AT&T", "sat"], ["a"], "a b"]
    assert [line.fields for line in lines] == rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (3, "tokens must be a list of words"),
        (["a", None], "tokens must be a list of words"),
        ([], "empty text"),
        ([" "], "empty text"),
    ],
)
def test_words_that_are_none(tmp_path, words, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"tokens": words}))
    with pytest.raises(UserError, match=f"rows.jsonl, line 1: {message}"):
        [*TextLines(str(file), "jsonl", inputs.WORDS.columns)]


def test_lines_of_anything(tmp_path):
    """Whatever a line holds, it is a text or one counted line."""
    random = np.random.default_rng(0)
    bits = [b'{"text": "a"}', b'"', b"\\ud800", b"{", b"[", b"]}", b"\t", b",", b"1e999", b"NaN"]
    bits += [b"\xff", b"\x00", b"\r", b"\xef\xbb\xbf", b"text", b"null", b": ", b" ", "é".encode()]
    for number in range(300):
        lines = [b"".join(random.choice(bits, random.integers(5))) for _ in range(4)]
        for suffix in ("txt", "jsonl", "json", "csv", "tsv"):
            file = tmp_path / f"lines.{suffix}"
            file.write_bytes(b"\n".join([b"text", *lines] if suffix[1:] == "sv" else lines))
            for skip in (False, True):
                texts = TextLines(str(file), suffix.replace("txt", "text"), skip=skip)
                with contextlib.suppress(UserError):
                    for line in texts:
                        json_line(line.fields).encode()
                        assert number or line.text
                assert not texts.skipped or texts.first_skipped

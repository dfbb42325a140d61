"""Reading tables: every format, and what goes wrong with each."""

import csv
import gzip
import io
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.tables import read_rows
from bert_jax.errors import UserError

pytestmark = pytest.mark.core


@pytest.fixture
def write(tmp_path):
    """Writes bytes, or text as UTF-8, into a file of the name; its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def values(source, *columns, **options):
    return [dict(row.values) for row in read_rows(source, columns, **options)]


def places(source, *columns, **options):
    return [row.place.rpartition("/")[2] for row in read_rows(source, columns, **options)]


def test_tsv_with_header_as_windows_writes_it(write):
    """A byte order mark, CRLF, quotes that are just text, a blank line."""
    source = write(
        "a.tsv", b'\xef\xbb\xbfQuality\t#1 String\r\n1\tHe said "no\r\n\r\n0\t"Caf\xc3\xa9" \r\n'
    )
    assert values(source, "#1 String") == [
        {"Quality": "1", "#1 String": 'He said "no'},
        {"Quality": "0", "#1 String": '"Café" '},
    ]
    assert places(source, "#1 String") == ["a.tsv, line 2", "a.tsv, line 4"]


def test_without_header_columns_are_numbered(write):
    source = write("a.tsv", "2\t1\ttext\n4\t\tmore\textra\n")
    assert values(source, "3", "1", "label") == [
        {"1": "2", "2": "1", "3": "text"},
        {"1": "4", "2": "", "3": "more", "4": "extra"},
    ]


def test_csv_is_quoted_and_may_break_lines(write):
    source = write("a.csv", 'text,label\r\n"one, ""two""\nthree",x\r\n\r\nfour,y\r\n')
    assert values(source, "text") == [
        {"text": 'one, "two"\nthree', "label": "x"},
        {"text": "four", "label": "y"},
    ]
    assert places(source, "text") == ["a.csv, line 2", "a.csv, line 5"]
    unbalanced = write("b.csv", 'text,label\na,x\n"b,y\nc,z\n')
    with pytest.raises(UserError, match=r"b.csv, line 3: not CSV .*; a quote inside"):
        values(unbalanced, "text")


def test_a_record_that_is_no_csv_can_be_left_out(write):
    path = write("b.csv", 'text\n"a ""b"""\n"c "d"\ne\n"f\ng\n"h\nh"\ni\n"j\nk\n')
    refused = []
    texts = [row.get("text") for row in read_rows(path, ["text"], refuse=refused.append)]
    assert texts == ['a "b"', "e", "g", "h\nh", "i", "k"]
    numbers = [re.search(r"line (\d+): not CSV", str(error))[1] for error in refused]
    assert numbers == ["3", "5", "10"]


def test_csv_holds_long_texts(write):
    text = "good film " * 20_000
    assert values(write("a.csv", f"label,text\ngood,{text}\n"), "text") == [
        {"label": "good", "text": text}
    ]


QUOTED = [
    {"label": "good", "text": 'She said "good film" and left'},
    {"label": "b", "text": "film"},
]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        # As pandas writes it, and R's readr; then with a line break, a tab, and all quoted.
        ('label\ttext\ngood\t"She said ""good film"" and left"\nb\tfilm\n', QUOTED),
        ('label\ttext\r\ngood\t"She said ""good film"" and left"\r\n\r\nb\tfilm', QUOTED),
        (
            'text\tlabel\n"a\n\nb"\tx\nc\ty\n',
            [{"text": "a\n\nb", "label": "x"}, {"text": "c", "label": "y"}],
        ),
        ('label\ttext\nx\t"a\nb"\n', [{"label": "x", "text": "a\nb"}]),
        ('text\tlabel\n"a\tb"\tx\n', [{"text": "a\tb", "label": "x"}]),
        ('"text"\t"label"\n"a"\t"x"\n', [{"text": "a", "label": "x"}]),
        # These are no quoting: quotes that open or close nothing, or that nothing needs.
        ('label\ttext\nx\t"a"\n', [{"label": "x", "text": '"a"'}]),
        (
            'label\ttext\nx\t"a\ny\tb"\n',
            [{"label": "x", "text": '"a'}, {"label": "y", "text": 'b"'}],
        ),
        ('label\ttext\nx\t"a ""b""\n', [{"label": "x", "text": '"a ""b""'}]),
        (
            'label\ttext\nx\t"a" b\ny\tc "d"\n',
            [{"label": "x", "text": '"a" b'}, {"label": "y", "text": 'c "d"'}],
        ),
    ],
)
def test_tsv_is_quoted_if_all_of_it_is(write, content, rows, caplog):
    source = write("a.tsv", content)
    assert values(source, "text") == rows
    assert not caplog.text


def test_format_decides_where_it_is_given(write):
    source = write("a.tsv", 'text\tlabel\n"a ""b"" c"\tx\n')
    assert values(source, "text", format="tsv") == [{"text": '"a ""b"" c"', "label": "x"}]
    source = write("b.tsv", 'text\tlabel\n"a"\tx\n')
    assert values(source, "text", format="quoted_tsv") == [{"text": "a", "label": "x"}]


def test_tsv_that_is_quoted_in_part_is_text_with_a_warning(write, caplog):
    source = write("a.tsv", 'label\ttext\nx\t"a ""b"" c"\ny\t"d\n')
    assert values(source, "text") == [
        {"label": "x", "text": '"a ""b"" c"'},
        {"label": "y", "text": '"d'},
    ]
    assert "a.tsv, line 3: quotes around some fields, but not by the rules" in caplog.text


def test_quoted_tsv_is_what_pythons_csv_wrote(write):
    """Any texts come back, whichever fields their writer quotes."""
    draw = random.Random(0)
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        rows = [[draw.choice("ab"), _any_text(draw)] for _ in range(300)]
        file = io.StringIO()
        writer = csv.writer(file, delimiter="\t", quoting=quoting, lineterminator="\n")
        writer.writerows([["label", "text"], *rows])
        found = values(write("a.tsv", file.getvalue()), "text")
        assert [[row["label"], row["text"]] for row in found] == rows


def _any_text(draw):
    return "".join(
        draw.choices(['"', "\t", "\n", "a", " ", "é", ",", "\u2028"], k=draw.randrange(1, 9))
    )


def test_json_is_a_list_or_lines(write):
    rows = [{"text": "a", "label": 1}, {"text": "b"}]
    source = write("a.json", json.dumps(rows, indent=1))
    assert values(source, "text") == rows
    assert places(source, "text") == ["a.json, item 1", "a.json, item 2"]
    lines = write("b.json", "\n" + "\n".join(map(json.dumps, rows)))
    assert values(lines, "text") == rows
    assert places(lines, "text") == ["b.json, line 2", "b.json, line 3"]


def test_parquet_has_the_names_of_classes(write):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = {"_type": "ClassLabel", "names": ["bad", "good"]}
    tags = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": ["O", "B"]}}
    features = {"label": names, "tags": tags, "old": [names], "text": {"dtype": "string"}}
    columns = {
        "text": ["a", None, "c"],
        "label": [1, 0, -1],
        "tags": [[0, 1], [], [1]],
        "old": [[1], [0], []],
    }
    table = pyarrow.table(columns)
    parquet.write_table(table, write("plain.parquet", ""))
    info = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": info})
    source = write("train-0.parquet", "")
    parquet.write_table(table, source)
    found = values(source, "text")
    assert found == [
        {"text": "a", "label": "good", "tags": ["O", "B"], "old": ["good"]},
        {"text": None, "label": "bad", "tags": [], "old": ["bad"]},
        {"text": "c", "label": None, "tags": ["B"], "old": []},
    ]
    assert places(source, "text")[1] == "train-0.parquet, row 2"
    assert [row["label"] for row in values(source.replace("train-0", "plain"), "text")] == [
        1,
        0,
        -1,
    ]

    parquet.write_table(table, source.replace("train-0", "train-1"))
    assert values(source.replace("train-0", "train-*"), "text") == found * 2
    content = Path(source).read_bytes()
    for damaged in (b"", b"PAR1", content[:-9], content[: len(content) // 2]):
        with pytest.raises(UserError, match=r"b.parquet: not Parquet, or damaged after row 0 \("):
            values(write("b.parquet", damaged), "text")


def test_rows_may_be_refused(write):
    """Bad rows go to `refuse`, and the others are read."""
    errors = []
    source = write("a.jsonl", b'{"text": "a"}\n{"text\n\xff\n[]\n{"text": "b"}\n')
    found = values(source, "text", refuse=errors.append)
    assert [row["text"] for row in found] == ["a", "b"]
    assert [str(error).partition("/a.jsonl, ")[2][:14] for error in errors] == [
        "line 2: not JS",
        "line 3: byte 1",
        "line 4: list, ",
    ]
    errors.clear()
    source = write("a.csv", "text,label\na,x,y\nb,x\n")
    assert values(source, "text", refuse=errors.append) == [{"text": "b", "label": "x"}]
    assert "line 2: 3 fields under a header of 2" in str(errors[0])


def test_jsonl_keeps_types_and_may_be_compressed(write):
    rows = [{"text": "Três\u2028四", "label": 1}, {"text": "", "label": None}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    source = write("a.jsonl.gz", gzip.compress(lines.encode()))
    assert values(source, "text") == rows
    assert places(source, "text") == ["a.jsonl.gz, line 1", "a.jsonl.gz, line 3"]


def test_label_first_in_latin_1(write):
    source = write("raw.train", "NUM:date  What year ?\n1 déjà : vu\n".encode("latin-1"))
    options = {"format": "label_first", "encoding": "latin-1"}
    assert values(source, **options) == [
        {"label": "NUM:date", "coarse_label": "NUM", "text": " What year ?"},
        {"label": "1", "coarse_label": "1", "text": "déjà : vu"},
    ]
    with pytest.raises(UserError, match=r"line 2: byte 4 of the line is not UTF-8; set `encoding`"):
        values(source, format="label_first")


def test_first_column_of_several_names(write):
    source = write("a.tsv", "sentence1\tgold\nA\tB\n")
    (row,) = read_rows(source, ["premise", "sentence1"])
    assert row.get("premise", "sentence1") == "A"
    assert row.has("premise", "gold")
    assert not row.has("premise")
    with pytest.raises(UserError, match=r"a.tsv, line 2: no column 'premise' or 'b'; there are \["):
        row.get("premise", "b")


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.train", "x", {}, r"a.train: format 'train' is none of tsv, csv, .*; set `format`"),
        ("a.tsv", "x\ty\n1\t2\n", {}, r"a.tsv, line 1: none of the columns text in \[x, y\]; if"),
        ("a.csv", "text;y\na;2\n", {}, "its columns are separated by ';': convert the file"),
        ("a.tsv", '"text","y"\na,2\n', {}, "its columns are separated by ',': convert the file"),
        ("a.tsv", "text\ty\n1\t2\t3\n", {}, r"a.tsv, line 2: 3 fields under a header of 2; is"),
        ("a.jsonl", '{"text": 1}\n{"text"', {}, r"a.jsonl, line 2: not JSON"),
        ("a.jsonl", "[1]\n", {}, r"a.jsonl, line 1: list, not an object"),
        (
            "a.jsonl",
            "[" * 100_000,
            {},
            r"a.jsonl, line 1: not usable JSON \(brackets nested too dee",
        ),
        ("a.jsonl", '{"text": "\\ud83d"}', {}, r"a.jsonl, line 1: .ud83d is half a character"),
        ("a.json", '[{"text": 1}, 2]', {}, r"a.json, item 2: int, not an object"),
        ("a.json", '{"text": 1,\n "b": 2}', {}, r"a.json, line 1: not JSON"),
        ("a.csv", "text,text\na,b\n", {}, r"a.csv, line 1: two columns are called 'text'"),
        ("a.tsv", "text\n", {"encoding": "utf-16"}, r"encoding: cannot read lines of 'utf-16'; co"),
        ("a.tsv", "text\n", {"encoding": "latin-x"}, r"encoding: cannot read lines of 'latin-x'"),
        ("a.txt", "1\n", {"format": "label_first"}, r"a.txt, line 1: no space between a label"),
        ("a.tsv.gz", b"\x1f\x8b\x08", {}, r"a.tsv.gz: damaged or cut short after line 0"),
    ],
)
def test_errors_name_the_line_and_what_to_do(write, name, content, options, message):
    with pytest.raises(UserError, match=message) as error:
        values(write(name, content), "text", **options)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    for name in ("no.tsv", "no*.tsv", "no.parquet"):
        with pytest.raises(UserError, match=rf"/{re.escape(name)}: no such file"):
            values(f"{tmp_path}/{name}", "text")
    with pytest.raises(UserError, match=r": a folder; name a file, or several by a glob"):
        values(str(tmp_path), "text")


def test_rows_are_streamed(write):
    """What is wrong in line 3 does not keep line 2 from being read."""
    rows = read_rows(write("a.tsv", b"text\na\n\xff\n"), ["text"])
    assert next(rows).values == {"text": "a"}
    with pytest.raises(UserError, match="line 3"):
        next(rows)


def test_tfds_classes_come_by_name(tmp_path):
    import tensorflow_datasets as tfds

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "sentence": tfds.features.Text(),
                        "label": tfds.features.ClassLabel(names=["bad", "good"]),
                        "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B"])),
                        "idx": np.int32,
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for index, label in enumerate([1, 0, -1]):
                text = f"Três {index}"
                yield index, {"sentence": text, "label": label, "tags": [0, 1], "idx": index}

    TinyReviews(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    found = values("tfds:tiny_reviews:test", data_dir=str(tmp_path))
    assert sorted(found, key=lambda row: row["idx"]) == [
        {"sentence": f"Três {index}", "label": label, "tags": ["O", "B"], "idx": index}
        for index, label in enumerate(["good", "bad", None])
    ]
    assert places("tfds:tiny_reviews:test", data_dir=str(tmp_path))[1] == (
        "tfds:tiny_reviews:test, example 1"
    )
    with pytest.raises(UserError, match=r"tfds:tiny_reviews:dev: cannot be read from data_dir"):
        values("tfds:tiny_reviews:dev", data_dir=str(tmp_path))

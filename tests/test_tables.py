"""Reading tables: every format, and what goes wrong with each."""

import gzip
import json

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.tasks.tables import read_rows

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
        ("a.tsv", "text\ty\n1\t2\t3\n", {}, r"a.tsv, line 2: 3 fields under a header of 2; is"),
        ("a.jsonl", '{"text": 1}\n{"text"', {}, r"a.jsonl, line 2: not JSON"),
        ("a.jsonl", "[1]\n", {}, r"a.jsonl, line 1: list, not an object"),
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
    with pytest.raises(UserError, match=r"no.tsv: no such file"):
        values(f"{tmp_path}/no.tsv", "text")


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

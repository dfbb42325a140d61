"""Reading documents: every format, and what goes wrong with each."""

import bz2
import dataclasses
import gzip
import io
import json
import logging
import lzma
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bert_jax.data import documents
from bert_jax.data.documents import (
    SkippedRecords,
    find_sources,
    read_documents,
    source_fingerprint,
)
from bert_jax.data.limits import SOURCES
from bert_jax.data.lines import zstd
from bert_jax.errors import UserError
from bert_jax.tasks import AnsweringTask, TaggingTask
from bert_jax.tasks.answering.example import Question
from bert_jax.tasks.classification.glue import Mnli, Sst2

ROOT = Path(__file__).parents[1]
TEXTS = ["One.\nTwo.", "Três, 四。", "Five."]


def read(*names, **options):
    return [text.strip() for text in read_documents(find_sources(map(str, names), **options))]


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n" + "\n \n\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def test_blank_lines_separate_documents(text_file):
    assert read(text_file) == TEXTS


def test_line_ends_and_byte_order_mark_of_windows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("One.\r\n\r\nTwo.\r\n".encode("utf-8-sig"))
    assert read(path) == ["One.", "Two."]


def test_document_per_file_and_unwrap(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("A line\nwrapped.\n\n\nNext paragraph,\n  wrapped too.\n")
    assert read(path, unwrap=True) == ["A line wrapped.", "Next paragraph, wrapped too."]
    assert read(path, document_per_file=True, unwrap=True) == [
        "A line wrapped.\nNext paragraph, wrapped too."
    ]
    assert read(path, document_per_file=True) == [path.read_text().strip()]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2", ".zst"])
def test_jsonl_and_compression(tmp_path, suffix):
    compress = {".gz": gzip, ".xz": lzma, ".bz2": bz2, ".zst": zstd}
    content = "".join(json.dumps({"page": {"body": text}}) + "\n" for text in TEXTS).encode()
    path = tmp_path / f"a.jsonl{suffix}"
    # Two members one after the other, as parallel compressors write them.
    half = content.index(b"\n") + 1
    parts = [content[:half], content[half:]]
    path.write_bytes(b"".join(compress[suffix].compress(p) if suffix else p for p in parts))
    assert read(path, text_field="page/body") == TEXTS
    if suffix:
        path.write_bytes(path.read_bytes()[:-6])
        with pytest.raises(UserError, match=rf"a.jsonl\{suffix}: damaged or cut short"):
            read(path, text_field="page/body")


def test_folders_and_globs_are_sorted(tmp_path):
    for name in ("b/2.txt", "a.txt", "b/10.txt.gz", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = name.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if ".gz" in name else content)
    sources = find_sources([str(tmp_path)])
    assert [source.name for source in sources] == ["a.txt", "b/10.txt.gz", "b/2.txt"]
    assert read(tmp_path / "b" / "*.txt*") == ["b/10.txt.gz", "b/2.txt"]
    assert read(tmp_path / "**" / "2.txt", tmp_path / "a.txt") == ["b/2.txt", "a.txt"]


def test_a_file_without_blank_line_warns_once(tmp_path, caplog):
    documents._warn.cache_clear()
    path = tmp_path / "a.txt"
    path.write_text("One.\nTwo.\n")
    with caplog.at_level(logging.WARNING):
        assert read(path) == ["One.\nTwo."] == read(path)
    assert [record.message.partition(":")[2][:15] for record in caplog.records] == [
        " no blank line,"
    ]


def test_progress_adds_up_to_the_size(text_file):
    sources = find_sources([str(text_file), "corpus:sotu"])
    advanced = []
    assert len(list(read_documents(sources, advanced.append))) == len(TEXTS) + 249
    assert 0.9 < sum(advanced) / sum(source.size for source in sources) <= 1


def test_carried_corpus_has_its_licence():
    texts = read("corpus:sotu")
    assert sum(len(text.split()) for text in texts) == pytest.approx(2_020_000, rel=0.01)
    assert texts[0].startswith("Fellow-Citizens of the Senate and House of Representatives:")
    (source,) = find_sources(["corpus:sotu"])
    licence = (source.path.parent / "README.md").read_text(encoding="utf-8")
    assert "MIT License" in licence
    assert "public domain" in licence


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file or folder"),
        ("*.csv", None, "no file with documents there: .txt, .jsonl, .csv, .tsv, .tar"),
        ("a.pdf", b"%PDF", "documents come as .txt, .jsonl, .csv, .tsv, .tar, .json, plain or .gz"),
        ("a.parquet.gz", b"", "documents come as .txt"),
        ("a.txt", b"good\nbad \xff\n", r"a\.txt, line 2: byte 5 of the line is not UTF-8"),
        ("a.txt", "Wörter".encode("utf-16"), "line 1: UTF-16, as its byte order mark says"),
        ("a.txt", b"one\n" + "two\n".encode("utf-16le"), "line 2: mostly NUL bytes: UTF-16, or"),
        ("a.txt", b"One.\rTwo.\r", r"a.txt: carriage returns end its lines; .* tr '\\r' '\\n' <"),
        ("a.csv", b"text\rOne.", r"a.csv: carriage returns end its lines"),
        ("a.jsonl", b'{\n "text": "x"\n}\n', "line 1: not JSON .* write each record in one line"),
        ("a.txt", b"One.\n\nTwo.\n" + b"\0" * 4096, "line 4: mostly NUL bytes: .* damaged file"),
        ("a.txt.gz", b"not gzip", r"a\.txt\.gz: damaged or cut short"),
        ("a.txt.gz", b"", r"a\.txt\.gz: damaged or cut short: an empty file"),
        ("a.txt.gz", lzma.compress(b"x"), "holds .xz data; unpack it, or give it that suffix"),
        ("a.txt", gzip.compress(b"x", mtime=0), "holds .gz data"),
        ("a.jsonl", zstd.compress(b"x"), "holds .zst data"),
        ("a.csv", bz2.compress(b"x"), "holds .bz2 data"),
        ("a.txt", bz2.compress(b""), "holds .bz2 data"),
        ("a.jsonl", b"PAR1....", "holds .parquet data"),
        ("a.csv.gz", b"PK\x03\x04..", "holds .zip data"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "x"}', r"no text field 'text' in \[body\]; pass --text-field"),
        ("a.jsonl", b'["x"]', r"no text field 'text' in \[list\]"),
        ("a.jsonl", b'{"text": 3}', "field 'text' is int, not text"),
        ("a.jsonl", b"[" * 100_000, "line 1: not usable JSON .brackets nested too deeply"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1: not JSON .*4300 digits"),
        ("a.jsonl", rb'{"text": "cut \ud83d"}', r"a.jsonl, line 1: \\ud83d is half a character"),
        ("a.jsonl", b'{"text": "a\0b"}', "line 1: not JSON"),
        ("a.csv", b"id,body\n1,x\n", r"line 1: none of the columns text in \[id, body\]"),
        ("a.csv", b"id,text\n1,a, b\n", "line 2: 3 fields under a header of 2"),
        ("a.csv", b"id,text\n1\n", r"line 2: no text field 'text' in \[id\]"),
        ("a.csv", b'id,text\n1,"cut\nshort', "line 2: not CSV"),
        ("a.csv", b"id,text\n1,caf\xe9\n", "line 2: byte 6 of the line is not UTF-8"),
        ("a.parquet", b"PAR1", "a.parquet: not Parquet, or damaged"),
        ("a.arrow", b"ARROW1\0\0", "a.arrow: not Arrow, or damaged"),
        ("a.feather", b"text", "a.feather: not Arrow, or damaged"),
        ("a.arrow.gz", b"", "documents come as .txt"),
        ("a.tar", b"text", "a.tar: not tar, damaged or cut short"),
        ("a.tar", gzip.compress(b"x", mtime=0), "holds .gz data"),
        ("a.tgz", b"text", "a.tgz: not tar, damaged or cut short"),
        ("a.json", b'[{"text": "x"}, 1]', "item 2: int, not an object"),
        ("corpus:moby-dick", None, "no such corpus"),
    ],
)
def test_bad_input(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(name if ":" in name else tmp_path / name)


def test_what_looks_damaged_and_is_not(tmp_path):
    """Characters of Unicode that other readers take for line breaks or blanks."""
    odd = "One\u2028two\x85three\x0bfour\ufefffive\x1csix\u3000seven"
    records = [json.dumps({"text": odd}, ensure_ascii=False), json.dumps({"text": "a\0b 😀"})]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\r\n\r\n\ufeff".join(records), encoding="utf-8")
    assert read(tmp_path / "a.jsonl") == [odd, "a\0b 😀"]
    (tmp_path / "b.txt").write_bytes(f"{odd}\r\n \r\nTwo\0 words\r\n".encode())
    assert read(tmp_path / "b.txt") == [odd, "Two\0 words"]
    for empty in ("c.txt", "c.jsonl", "c.csv"):
        (tmp_path / empty).write_bytes(b"")
        assert read(tmp_path / empty) == []
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b""))
    assert read(tmp_path / "c.txt.gz") == []
    (tmp_path / "BZh9.txt").write_text("BZh9 is how bzip2 begins.\n")
    assert read(tmp_path / "BZh9.txt") == ["BZh9 is how bzip2 begins."]


def test_file_names_of_any_kind(tmp_path):
    for name in ("a\nb.txt", "[1] x?.txt", "ünï*.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}')
        assert read(tmp_path / name) == ["x" if name.endswith("jsonl") else '{"text": "x"}']
        assert find_sources([str(tmp_path / name)])[0].fingerprint()["name"] == name


BAD = {
    "a.txt": b"One.\n\nTwo.\nTw\xff.\nTwo.\n\n\xff\xff\n\n" + b"\0" * 100 + b"\nThree.\n\n",
    "a.jsonl": b"""{"text": "One."}
{"text": null}
{"text": "cut sho
[1, 2]
{"text": "Two."}
{"text": "\xff"}
{"text": "\\ud83d"}
{"body": "x"}
{"text": "Three."}
"""
    + b"[" * 100_000,
    "a.csv": b'id,text\n1,One.\n2,too,many\n3\n4,"Two,\n""2""."\n5,caf\xe9\n6,Three.\n',
}


@pytest.mark.parametrize(
    ("name", "texts", "count", "first"),
    [
        ("a.txt", ["One.", "Two.\nTwo.", "Three."], 3, "line 4: byte 3 of the line is not UTF-8"),
        ("a.jsonl", ["One.", "Two.", "Three."], 7, "line 2: field 'text' is NoneType, not text"),
        ("a.csv", ["One.", 'Two,\n"2".', "Three."], 3, "line 3: 3 fields under a header of 2"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_bad_records_are_skipped_and_counted(tmp_path, caplog, name, texts, count, first, suffix):
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(zstd.compress(BAD[name]) if suffix else BAD[name])
    skipped = SkippedRecords()
    assert read(path, refuse=skipped) == texts
    assert skipped.count == count
    messages = [record.message for record in caplog.records]
    assert messages[0].startswith(f"skipped: {path}, {first}")
    assert len(messages) == 3
    assert read(path, refuse=skipped) == texts
    assert skipped.count == 2 * count
    with pytest.raises(UserError, match=first):
        read(path)


def write_parquet(path, columns, **options):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, **options)


def test_tables(tmp_path):
    pages = [{"body": text} for text in TEXTS]
    columns = {"id": [1, 2, 3], "page": pages, "n": [[1], [], [3]]}
    write_parquet(tmp_path / "a.parquet", columns, row_group_size=2)
    assert read(tmp_path / "a.parquet", text_field="page/body") == TEXTS
    assert read(tmp_path / "a.parquet", text_field="page/body", unwrap=True) == [
        " ".join(text.split()) for text in TEXTS
    ]
    with pytest.raises(UserError, match=r"row 1: no text field 'text' in \[id, page, n\]"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 1: field 'id' is int, not text"):
        read(tmp_path / "a.parquet", text_field="id")
    write_parquet(tmp_path / "b.parquet", {"text": [b"One.", None, b"Tw\xc3\xb6.", b"\xff"]})
    skipped = SkippedRecords()
    assert read(tmp_path / "b.parquet", refuse=skipped) == ["One.", "Twö."]
    assert skipped.count == 2

    long = "word " * 100_000
    (tmp_path / "a.csv").write_text(f'id,text\n1,"{long}\nTwo ""2""."\n\n2,b\n', encoding="utf-8")
    assert read(tmp_path / "a.csv") == [f'{long}\nTwo "2".', "b"]
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b'text\tid\nHe said "no".\t1\n'))
    assert read(tmp_path / "a.tsv.gz") == ['He said "no".']
    (tmp_path / "b.csv").write_text("1,One.\n2,Two.\n")
    assert read(tmp_path / "b.csv", text_field="2") == ["One.", "Two."]

    def found():
        return [source.name for source in find_sources([str(tmp_path)])]

    assert found() == ["a.parquet", "b.parquet"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("One.")
    assert found() == ["sub/a.txt"]
    assert len(find_sources([str(tmp_path / "*.[ct]sv*")])) == 3


def test_nested_fields_by_dots_or_slashes(tmp_path):
    """As in corpora made from WARC files, where names have dots, dashes and colons, too."""
    record = {"metadata": {"WARC-Type": "a", "v1.0": {"text": "One."}}, "raw.text": "Two."}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(f"[{json.dumps(record)}]".encode()))
    write_parquet(tmp_path / "a.parquet", {name: [value] for name, value in record.items()})
    for name in ("a.jsonl", "a.json.gz", "a.parquet"):
        for field in ("metadata.v1.0.text", "metadata/v1.0/text", "metadata.v1.0/text"):
            assert read(tmp_path / name, text_field=field) == ["One."]
        assert read(tmp_path / name, text_field="raw.text") == ["Two."]
        with pytest.raises(UserError, match=r"no text field 'metadata.v2.text' in \[WARC-Type, v1"):
            read(tmp_path / name, text_field="metadata.v2.text")


def arrow_stream(path, columns):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def test_arrow_files(tmp_path, caplog):
    pytest.importorskip("pyarrow")
    from pyarrow import feather, table

    columns = {"id": [1, 2, 3], "page": [{"body": text} for text in TEXTS]}
    arrow_stream(tmp_path / "a.arrow", columns)
    feather.write_feather(table(columns), str(tmp_path / "b.feather"), compression="lz4")
    for name in ("a.arrow", "b.feather"):
        sources = find_sources([str(tmp_path / name)], text_field="page.body")
        advanced = []
        assert [text.strip() for text in read_documents(sources, advanced.append)] == TEXTS
        assert 0.9 < sum(advanced) / sources[0].size <= 1
        with pytest.raises(UserError, match=r"row 1: no text field 'text' in \[id, page\]"):
            read(tmp_path / name)
    assert read(tmp_path, text_field="page.body") == [*TEXTS, *TEXTS]

    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[:-8])
    assert read(tmp_path / "a.arrow", text_field="page.body") == TEXTS
    assert "a.arrow: has no end mark; it may be cut short" in caplog.text
    (tmp_path / "a.arrow").write_bytes(content[:-40])
    with pytest.raises(UserError, match=r"a.arrow: not Arrow, or damaged after row 2 \("):
        read(tmp_path / "a.arrow", text_field="page.body")


def test_datasets_that_were_saved_to_disk(tmp_path):
    """The files that `save_to_disk` writes, in the order in which it names them."""
    train = tmp_path / "saved" / "train"
    train.mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (train / "state.json").write_text(json.dumps(state))
    arrow_stream(train / names[0], {"text": TEXTS[:2]})
    arrow_stream(train / names[1], {"text": TEXTS[2:]})
    arrow_stream(train / "cache-0123.arrow", {"text": ["of a map"]})
    assert read(tmp_path / "saved") == read(train) == TEXTS
    (train / names[1]).unlink()
    with pytest.raises(UserError, match=r"arrow: missing, but state.json names"):
        read(train)
    (train / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{}]}))
    with pytest.raises(UserError, match=r"a selection of rows; save `dataset\.flatten_indices"):
        read(train)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["dev", "test"]}')
    with pytest.raises(UserError, match="saved: no split train; name one of dev, test in it"):
        read(tmp_path / "saved")


def write_tar(path, files, *, compress=None):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
        folder = tarfile.TarInfo("a folder.txt")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    data = content.getvalue()
    path.write_bytes(compress(data) if compress else data)
    return data


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst"])
def test_tar(tmp_path, caplog, suffix):
    compressors = {"gz": gzip, "tgz": gzip, "xz": lzma, "bz2": bz2, "zst": zstd}
    compressor = compressors.get(suffix.rpartition(".")[2])
    files = {
        "b/2.txt": "\n\n".join(TEXTS[:2]).encode(),
        "b/._2.txt": b"\0\5\26\7" * 20,
        "/b/1.jsonl.zst": zstd.compress(json.dumps({"text": TEXTS[2]}).encode()),
        "b/notes.pdf": b"%PDF",
        "b/big.txt": b"word " * 30_000 + b"\n",
        "../a.txt": b"Four.",
    }
    path = tmp_path / f"a{suffix}"
    write_tar(path, files, compress=compressor and compressor.compress)
    big = ("word " * 30_000).strip()
    assert read(path) == [*TEXTS, big, "Four."]
    assert read(path, document_per_file=True)[0] == "\n\n".join(TEXTS[:2])
    assert find_sources([str(tmp_path)])[0].fingerprint()["name"] == f"a{suffix}"
    assert [record.message for record in caplog.records] == [
        f"{path}: files without a blank line are one document each; pass --document-per-file if "
        "all are"
    ]


def test_damaged_tar(tmp_path):
    files = {f"{i}.txt": f"Text {i}.\n\nMore.".encode() * 60 for i in range(3)}
    path = tmp_path / "a.tar"
    content = write_tar(path, files)
    texts = read(path)
    for size in range(0, 5120, 256):  # every cut is noticed, at the edge of a file, too
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"a.tar.* damaged or cut short"):
            read(path)
    second = content.index(b"1.txt")
    path.write_bytes(content[:second] + b"?" + content[second + 1 :])
    with pytest.raises(UserError, match=rf"at byte {second:,}: bad checksum"):
        read(path)
    path.write_bytes(content)
    assert read(path) == texts
    write_tar(path, files | {"1.txt": b"\xff"})
    with pytest.raises(UserError, match=r"a.tar/1.txt, line 1: byte 1 of the line is not UTF-8"):
        read(path)
    write_tar(path, {"a.pdf": b""})
    with pytest.raises(UserError, match=r"a.tar: no .txt or .jsonl file in it"):
        read(path)


@pytest.mark.parametrize("compress", [None, gzip.compress, zstd.compress])
@pytest.mark.parametrize("is_jsonl", [True, False])
def test_standard_input_is_read_as_often_as_needed(monkeypatch, compress, is_jsonl):
    records = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    content = ("\n" + records if is_jsonl else "\n\n".join(["{a brace}", *TEXTS])).encode()
    stream = io.TextIOWrapper(io.BytesIO(compress(content) if compress else content))
    monkeypatch.setattr(sys, "stdin", stream)
    sources = find_sources(["-"])
    for _ in range(2):
        texts = [text.strip() for text in read_documents(sources)]
        assert texts == (TEXTS if is_jsonl else ["{a brace}", *TEXTS])
    assert sources[0].fingerprint()["name"] == "-"


def test_no_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="-: standard input is closed"):
        find_sources(["-"])


def test_kinds_of_sources_are_documented():
    table = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("## Sources")[2]
    names = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)[: len(SOURCES)]
    assert [name.replace("`", "") for name in names] == [name for name, _, _ in SOURCES]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hugging Face Hub with a dataset of two folders; there is no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    dataset = tmp_path / "datasets--wikimedia--wikipedia"
    snapshot = dataset / "snapshots" / "0123abcd"
    (dataset / "refs").mkdir(parents=True)
    (dataset / "refs" / "main").write_text("0123abcd")
    for name, text in (
        ("20231101.en/train-00000-of-00002.parquet", "One."),
        ("20231101.en/train-00001-of-00002.parquet", "Two."),
        ("20231101.en/test-00000-of-00001-9f.parquet", "Three."),
        ("20231101.de/train/0000.parquet", "Eins."),
    ):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        write_parquet(snapshot / name, {"text": [text]})
    return snapshot


def test_datasets_of_the_hugging_face_hub(hub):
    assert read("hf:wikimedia/wikipedia/20231101.en") == ["One.", "Two."]
    assert read("hf:wikimedia/wikipedia/20231101.en:test") == ["Three."]
    assert read("hf:wikimedia/wikipedia:test") == ["Three."]
    assert read("hf:wikimedia/wikipedia/20231101.de:train") == ["Eins."]
    (source,) = find_sources(["hf:wikimedia/wikipedia/20231101.de"])
    assert source.fingerprint()["name"] == "hf:wikimedia/wikipedia/20231101.de/train/0000.parquet"


def test_tasks_read_the_hugging_face_hub_too(hub):
    write_parquet(hub / "20231101.de" / "dev.parquet", {"sentence": ["a"], "label": [1]})
    source = "hf:wikimedia/wikipedia/20231101.de:dev"
    (example,) = Sst2().read(source)
    assert (example.text_a, example.label) == ("a", "1")  # positive
    assert Mnli().submission_name("hf:nyu-mll/glue/mnli:test_matched") == "MNLI-m.tsv"
    write_parquet(hub / "20231101.de" / "dev.parquet", {"tokens": [["a", "b"]], "tags": [[1, 0]]})
    (sentence,) = TaggingTask(labels=("O", "B-X")).read(source)
    assert (sentence.words, sentence.tags) == (["a", "b"], ["B-X", "O"])
    row = {"id": ["1"], "question": ["q"], "context": ["c"]}
    write_parquet(hub / "20231101.de" / "dev.parquet", row)
    (question,) = AnsweringTask().read(source, labelled=False)
    assert question == Question("1", "q", "c")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:wikimedia/wikipedia", "name one of its folders, as in hf:.../20231101.de"),
        (
            "hf:wikimedia/wikipedia/20231101.fr",
            r"cannot be downloaded .* `hf download --repo-type dataset wikimedia/wikipedia "
            r"--include '20231101.fr/\*'`",
        ),
        ("hf:wikimedia/wikipedia/20231101.en:validation", "cannot be downloaded"),
        ("hf:nobody/nothing", r"--include '\*.parquet'"),
        ("hf:a b", r"write hf:OWNER/DATASET\[/FOLDER\]\[:SPLIT\]"),
    ],
)
def test_what_the_cache_of_the_hub_lacks(hub, name, message):
    with pytest.raises(UserError, match=message) as error:
        find_sources([name])
    assert "\n" not in str(error.value)


def test_datasets_of_other_forms_are_read_through_the_library(tmp_path, monkeypatch):
    """The library takes a folder of that name for the dataset: there is no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("huggingface_hub")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "allenai" / "c4"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "train.json.gz").write_bytes(gzip.compress(lines.encode()))
    assert read("hf:allenai/c4") == TEXTS
    (source,) = find_sources(["hf:allenai/c4:train"])
    assert re.fullmatch(r"hf:allenai/c4/.*train.*\.arrow", source.fingerprint()["name"])
    with pytest.raises(UserError, match="nor does `datasets` load it"):
        find_sources(["hf:allenai/c4:dev"])


def test_half_a_download_is_not_a_dataset(hub, monkeypatch):
    missing = hub / "20231101.en" / "train-00001-of-00002.parquet"
    content = missing.read_bytes()
    missing.unlink()
    with pytest.raises(UserError, match="not in the cache, and cannot be downloaded"):
        find_sources(["hf:wikimedia/wikipedia/20231101.en"])

    def download(repository, *, repo_type, allow_patterns):
        assert (repository, repo_type) == ("wikimedia/wikipedia", "dataset")
        assert allow_patterns == [f"20231101.en/train-0000{i}-of-00002.parquet" for i in (0, 1)]
        missing.write_bytes(content)
        return str(hub)

    there = [
        f"20231101.{language}/train-0000{i}-of-00002.parquet"
        for language in ("de", "en")
        for i in (0, 1)
    ]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name, repo_type: there)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert read("hf:wikimedia/wikipedia/20231101.en") == ["One.", "Two."]


@dataclasses.dataclass
class Given:
    """A source of one's own."""

    texts: object
    size: object = 1
    identity: object = dataclasses.field(default_factory=dict)

    def fingerprint(self):
        return self.identity

    def documents(self, advance):
        return self.texts


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], "Given: document 2 is NoneType, not text"),
        ([b"a"], "Given: document 1 is bytes, not text"),
        (["a\udc80"], r"Given: document 1 has \\udc80, which is half a character"),
        ("text", r"Given: documents\(\) must return texts, not one str"),
        (None, r"Given: documents\(\) must return texts, not one NoneType"),
    ],
)
def test_sources_that_give_no_texts(texts, message):
    with pytest.raises(UserError, match=message):
        list(read_documents([Given(texts)]))
    if isinstance(texts, list):
        skipped = SkippedRecords()
        assert "".join(read_documents([Given([*texts, "b"])], refuse=skipped)) in ("ab", "b")
        assert skipped.count == 1


@pytest.mark.parametrize("identity", [None, {"a": (1,)}, {1: 2}, {"a": {2}}, {"a": float("nan")}])
def test_fingerprints_that_no_manifest_can_hold(identity):
    with pytest.raises(UserError, match=r"Given: fingerprint\(\) must return a dict of plain JSON"):
        source_fingerprint(Given([], identity=identity))
    assert source_fingerprint(Given([], identity={"a": [1]})) == {"a": [1]}


def needs_an_argument(argument):
    return Given(argument)


SIZELESS = Given([], size="big")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json:dumps", "must be callable without arguments"),
        ("test_documents:needs_an_argument", "must be callable without arguments .*argument"),
        ("test_documents:TEXTS", r"list is no source: it has no documents\(\)"),
        ("test_documents:SIZELESS", "Given is no source: its size is no int"),
    ],
)
def test_names_of_what_is_no_source(name, message):
    with pytest.raises(UserError, match=message):
        find_sources([name])


# In a process of its own: whether TensorFlow gets imported is a property of the process.
BUILD_AND_READ = """
import pickle, sys
from bert_jax.corpora.sotu import Sotu
from bert_jax.data.documents import find_sources, read_documents
Sotu(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
(source,) = find_sources(["tfds:sotu:train[:100]"], data_dir=sys.argv[1])
texts = list(read_documents([source]))
carried = set(read_documents(find_sources(["corpus:sotu"])))
assert len(texts) == len(set(texts)) == 100 and carried.issuperset(texts)
assert source.fingerprint() == {"name": "tfds:sotu/1.0.0:train[:100]", "examples": 100}
sent = pickle.loads(pickle.dumps(source))  # to a worker
assert [*read_documents([sent])] == [*read_documents([source])]
assert source.size > 1_000_000
assert len(list(read_documents(find_sources(["tfds:sotu:1.0.0"], data_dir=sys.argv[1])))) == 249
assert "tensorflow" not in sys.modules
"""


def test_tfds_without_tensorflow(tmp_path):
    subprocess.run([sys.executable, "-c", BUILD_AND_READ, tmp_path], check=True)
    for name, message in (
        ("tfds:sotu:test", "cannot be read from data_dir"),
        ("tfds:no_such_dataset", "`tfds build no_such_dataset --file_format=array_record --data"),
        ("tfds:wikipedia/20230601.en", "apache-beam .*`, then `tfds build wikipedia/20230601.en"),
    ):
        with pytest.raises(UserError, match=message) as error:
            read(name, data_dir=str(tmp_path))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no text field 'body' in \[id, president, text, year\]"):
        read("tfds:sotu", data_dir=str(tmp_path), text_field="body")

"""Reading documents: every format, and what goes wrong with each."""

import bz2
import gzip
import json
import logging
import lzma
import subprocess
import sys

import pytest

from bert_jax.data import documents
from bert_jax.data.documents import find_sources, read_documents, zstd
from bert_jax.errors import UserError

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
        ("*.csv", None, r"no \.txt or \.jsonl file there"),
        ("a.pdf", b"%PDF", r"documents come as \.txt or \.jsonl"),
        ("a.txt", b"good\nbad \xff\n", r"a\.txt, line 2: byte 5 of the line is not UTF-8"),
        ("a.txt.gz", b"not gzip", r"a\.txt\.gz: damaged or cut short"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "x"}', r"no text field 'text' in \[body\]; pass --text-field"),
        ("a.jsonl", b'["x"]', r"no text field 'text' in \[list\]"),
        ("a.jsonl", b'{"text": 3}', "field 'text' is int, not text"),
        ("corpus:moby-dick", None, "no such corpus"),
    ],
)
def test_bad_input(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(name if ":" in name else tmp_path / name)


# In a process of its own: whether TensorFlow gets imported is a property of the process.
BUILD_AND_READ = """
import sys
from bert_jax.corpora.sotu import Sotu
from bert_jax.data.documents import find_sources, read_documents
Sotu(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
(source,) = find_sources(["tfds:sotu:train[:100]"], data_dir=sys.argv[1])
texts = list(read_documents([source]))
carried = set(read_documents(find_sources(["corpus:sotu"])))
assert len(texts) == len(set(texts)) == 100 and carried.issuperset(texts)
assert source.fingerprint() == {"name": "tfds:sotu/1.0.0:train[:100]", "examples": 100}
assert source.size > 1_000_000
assert len(list(read_documents(find_sources(["tfds:sotu:1.0.0"], data_dir=sys.argv[1])))) == 249
assert "tensorflow" not in sys.modules
"""


def test_tfds_without_tensorflow(tmp_path):
    subprocess.run([sys.executable, "-c", BUILD_AND_READ, tmp_path], check=True)
    for name, message in (
        ("tfds:sotu:test", "cannot be read from data_dir"),
        ("tfds:no_such_dataset", "cannot be read from data_dir"),
    ):
        with pytest.raises(UserError, match=message) as error:
            read(name, data_dir=str(tmp_path))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no text field 'body' in \[id, president, text, year\]"):
        read("tfds:sotu", data_dir=str(tmp_path), text_field="body")

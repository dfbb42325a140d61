"""The verb `inspect`: what it says of stores that are known."""

import re
import shutil

import numpy as np
import pytest
from test_tfrecords import encoded, features, write

from bert_jax import __main__, inspect
from bert_jax.data.contents import Lengths, read_documents_of
from bert_jax.data.split import Split
from bert_jax.data.store_writer import write_store
from bert_jax.data.stores import open_store
from bert_jax.errors import UserError


def test_lengths():
    counts = np.zeros(300, np.int64)
    counts[[2, 5, 9]] = 100, 200, 100
    lengths = Lengths(counts)
    assert lengths.mean == 5.25
    assert [lengths.quantile(share) for share in (0.01, 0.25, 0.5, 0.75, 0.76, 1)] == [
        *(2, 2, 5, 5, 9, 9)
    ]
    edges, shares = lengths.bins()
    assert edges.tolist() == [*range(2, 11)]
    assert shares.tolist() == [0.25, 0, 0, 0.5, 0, 0, 0, 0.25]
    counts = np.zeros(10**6 + 1, np.int64)
    counts[[1, 10, 10**6]] = 1, 2, 1
    edges, shares = Lengths(counts).bins()
    assert len(shares) <= 36
    assert shares.sum() == 1
    assert edges[-1] == 10**6 + 1


def test_copies_of_documents():
    """Those of the same tokens, wherever their sentences end."""
    tokens = np.array([7, 8, 9, 7, 8, 9, 7, 8, 8, 7, 7, 8, 9, 3], np.uint16)
    sentences = np.array([0, 1, 3, 6, 8, 10, 13, 14])
    documents = np.array([0, 2, 3, 4, 5, 6, 7])  # 789 | 789 | 78 | 87 | 789 | 3
    split = Split("train", tokens, sentences, documents, np.bincount(tokens))
    found = read_documents_of(iter([split, split]))
    assert found.duplicates == 1 - 4 / 12
    assert found.document_lengths.counts[:5].tolist() == [0, 2, 4, 6, 0]
    assert found.sentence_lengths.counts[:5].tolist() == [0, 4, 6, 4, 0]


@pytest.fixture(scope="module")
def contents(sotu_store):
    (found,) = inspect([sotu_store])
    return found


def test_what_is_in_a_store(contents, sotu_store):
    store = open_store(sotu_store)
    train, heldout = store.train, store.heldout
    assert contents.sizes["train"]["documents"] == len(train.documents) - 1
    assert contents.documents.duplicates == 0
    lengths = np.concatenate([np.diff(split.sentences) for split in (train, heldout)])
    assert contents.documents.sentence_lengths.mean == pytest.approx(lengths.mean())
    assert contents.documents.sentence_lengths.quantile(0.5) == np.median(lengths)
    total = contents.documents.document_lengths.counts
    assert total.sum() == len(train.documents) + len(heldout.documents) - 2
    assert contents.frequent[0] == ("the", train.token_counts.max() / len(train.tokens))
    assert contents.unknown == train.token_counts[1] / len(train.tokens)
    assert contents.unused == np.count_nonzero(train.token_counts[5:] == 0)
    assert 100 < contents.example_lengths.mean <= contents.example_lengths.quantile(1) == 128


def test_a_store_of_several_shards(sotu_store, tmp_path, capsys):
    """Has the contents of the same documents in one, copies in other shards too."""
    texts = [
        " ".join(f"Word{(7 * i + j) % 50} one{' two' * (i % 5)}." for j in range(1 + i % 4))
        for i in range(200)
    ]
    texts += texts[:20]
    given = {"heldout_bound": 0.2, "provenance": {}}
    tokenizer = open_store(sotu_store).tokenizer
    write_store(tmp_path / "one", texts, tokenizer, **given)
    sharded = write_store(tmp_path / "shards", texts, tokenizer, **given, shard_tokens=500)
    one, many = inspect([tmp_path / "one", sharded.path])
    assert len(sharded.shards["train"]) > 4
    assert many.summary == f"{one.summary} in {len(sharded.shards['train'])} shards"
    copies = 1 - len(set(texts)) / len(texts)
    assert many.documents.duplicates == one.documents.duplicates == pytest.approx(copies)
    assert copies > 0.09
    assert many.sizes == one.sizes
    assert sum(size["documents"] for size in many.sizes.values()) == len(texts)
    for name in ("sentence_lengths", "document_lengths"):
        of_one, of_many = (getattr(each.documents, name).counts for each in (one, many))
        np.testing.assert_array_equal(of_one, of_many)
    np.testing.assert_array_equal(one.counts, many.counts)
    for name in ("vocabulary", "frequent", "unknown", "unused"):
        assert getattr(one, name) == getattr(many, name)
    assert many.example_lengths.quantile(1) <= 128
    assert len(many.examples) == 4
    name = "shards/00002/train/tokens.bin"
    (sharded.path / name).write_bytes(bytes((sharded.path / name).stat().length))
    assert run(sharded.path, "--verify") == 2
    assert f"{name}: content changed since it was written\n" in capsys.readouterr().out


def test_examples_are_readable(contents):
    assert len(contents.examples) == 4
    for head, *parts in contents.examples:
        found = re.match(r"(\d+) tokens, (\d+) to predict; the second", head)
        length, masks = map(int, found.groups())
        assert masks == min(20, round(0.15 * length))
        assert len(parts) == 2
        assert sum(part.count("{") for part in parts) == masks
        assert "[MASK]" not in " ".join(parts)
        assert "[CLS]" not in parts[0]


def run(*arguments):
    return __main__.main(["inspect", *map(str, arguments)])


def test_text_picture_and_page(sotu_store, tmp_path, capsys):
    outputs = (tmp_path / "a.png", tmp_path / "a.html")
    flags = [f"--output={output}" for output in outputs]
    assert run(sotu_store, sotu_store, "--max-seq-length=64", *flags) == 0
    printed = capsys.readouterr().out
    assert printed.count("tokens of a sentence: mean ") == 2
    assert "tokens of an example, at most 64: mean" in printed
    assert "copies: 0.00% of the documents repeat an earlier one" in printed
    assert outputs[0].read_bytes().startswith(b"\x89PNG")
    page = outputs[1].read_text(encoding="utf-8")
    assert "<title>2 stores</title>" in page
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_premasked_records(sotu_store, tmp_path, capsys):
    """They tell examples and pieces, not documents."""
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(sotu_store / name, tmp_path)
    tokens = [2, 10, 4, 11, 3, 12, 13, 3]
    batch = {
        "input_ids": [tokens + [0] * 4],
        "segment_ids": [[1] * 8 + [0] * 4],
        "token_type_ids": [[0] * 5 + [1] * 3 + [0] * 4],
        "masked_lm_positions": [[2, 6, 0]],
        "masked_lm_ids": [[20, 30, 0]],
        "masked_lm_weights": [[1.0, 1.0, 0.0]],
        "next_sentence_label": [[1]],
    }
    record = encoded(features({name: np.array(rows) for name, rows in batch.items()}, 0))
    for name in ("part-0.tfrecord", "heldout.tfrecord"):
        write(tmp_path / name, [record] * 3)
    (found,) = inspect([tmp_path], num_examples=1)
    assert found.documents is None
    assert found.sizes == {"train": {"examples": 3}, "heldout": {"examples": 3}}
    assert found.example_lengths.counts[8] == found.example_lengths.counts.sum()
    pieces = open_store(tmp_path).tokenizer.vocab
    assert found.examples == [
        [
            "8 tokens, 2 to predict; the second part is from elsewhere",
            f"{pieces[10]} {{{pieces[20]}}} {pieces[11]}",
            f"{pieces[12]} {{{pieces[13]}|{pieces[30]}}}",
        ]
    ]
    assert run(tmp_path, f"--output={tmp_path / 'a.png'}") == 0
    assert "copies" not in capsys.readouterr().out


def test_stores_that_cannot_be_inspected(sotu_store, tmp_path, capsys):
    for arguments, message in (
        ((tmp_path / "none",), "none: no token store there"),
        ((tmp_path,), "no token store there"),
        ((sotu_store, "--max-seq-length=2"), "max_seq_length must be at least 5"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(sotu_store, "--output=a.gif")
    assert "a.gif must end in .png or .html" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(sotu_store, copy)
    tokens = copy / "train" / "tokens.bin"
    content = bytearray(tokens.read_bytes())
    content[-1] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(UserError, match=r"tokens.bin: bytes from .* changed since"):
        inspect([copy])
    assert run(copy, "--verify") == 2
    assert "train/tokens.bin: content changed since it was written\n" in capsys.readouterr().out
    assert run(sotu_store, "--verify") == 0
    assert f"{sotu_store} is whole." in capsys.readouterr().out

"""Tokenizer files of transformers, read and written, for tokenizers other than WordPiece."""

import itertools
import json
from pathlib import Path

import pytest
from etils import epath
from portables import make_portable

from bert_jax.__main__ import main
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.train_tokenizer import train_tokenizer
from bert_jax.data.wordpiece import SPECIAL_TOKENS
from bert_jax.inference.trained import load
from bert_jax.interop.huggingface import write_huggingface
from bert_jax.interop.tokenizer import read_tokenizer, write_tokenizer

TEXTS = ["Hello (world), don't stop.", "naïve  café 中"]
ESM = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*itertools.islice(read_documents(find_sources(["corpus:sotu"])), 4)]


def folder(path: Path) -> epath.Path:
    path.mkdir()
    return epath.Path(path)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
def test_transformers_reads_what_is_written_and_back(kind, texts, tmp_path, transformers, capsys):
    """The same ids of texts, pairs and masks; theirs come back byte for byte."""
    ours = train_tokenizer(kind, texts, vocab_size=400)
    model = make_portable(ours, ("masked_lm",))
    write_huggingface(folder(tmp_path / "model"), model, print)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs.model_max_length == 128
    a, b = ours.encode(TEXTS)
    cls, sep = ours.cls_id, ours.sep_id
    assert theirs(TEXTS)["input_ids"] == [[cls, *a, sep], [cls, *b, sep]]
    assert theirs(*TEXTS)["input_ids"] == [cls, *a, sep, *b, sep]
    marked = f"The {theirs.mask_token} of it{theirs.mask_token}."
    assert theirs(marked)["input_ids"] == [cls, *ours.encode_marked(marked), sep]
    assert theirs.pad_token_id == ours.pad_id

    theirs.save_pretrained(tmp_path / "theirs")
    again = read_tokenizer(epath.Path(tmp_path / "theirs"))
    assert again.vocab_hash == ours.vocab_hash
    write_tokenizer(folder(tmp_path / "again"), again, 77)
    for file in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()

    # Through our own format; a guess is a piece as it is in the text.
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "ours"), "--to=bert_jax"]) == 0
    assert {path.name for path in (tmp_path / "ours").iterdir()} >= {"tokenizer.json"}
    bert = load(tmp_path / "ours")
    ((guesses,),) = bert.fill_mask(["The [MASK]"], top_k=len(ours.vocab))
    assert {guess.token for guess in guesses} == set(ours.pieces)
    exported = tmp_path / "exported"
    if kind == "bpe":
        assert main(["export", f"--model={tmp_path / 'ours'}", f"--output={exported}"]) == 0
        assert load(exported).tokenizer == bert.tokenizer
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "tf"), "--to=google"]) == 2
    assert "Google's format has only WordPiece" in capsys.readouterr().err


def test_files_of_esm(tmp_path, transformers):
    """A vocab.txt of characters, in which tokens may be written."""
    folder(tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(ESM))
    theirs = transformers.EsmTokenizer(str(tmp_path / "model" / "vocab.txt"))
    ours = read_tokenizer(epath.Path(tmp_path / "model"))
    assert ours.description == "33 tokens, characters, cased"
    assert [ours.vocab[id_] for id_ in ours.special_ids] == [
        *("<cls>", "<pad>", "<eos>", "<unk>", "<null_1>", "<mask>")
    ]
    for text in ("MKTAYIAKQR", "MK jj A", "L A G<mask>V", "MKX*B"):
        expected = theirs(text)["input_ids"]
        assert [ours.cls_id, *ours.encode_marked(text), ours.sep_id] == expected
    theirs.save_pretrained(tmp_path / "theirs")
    write_tokenizer(
        folder(tmp_path / "again"), read_tokenizer(epath.Path(tmp_path / "theirs")), 1026
    )
    vocabularies = [tmp_path / name / "vocab.txt" for name in ("theirs", "again")]
    assert vocabularies[0].read_bytes() == vocabularies[1].read_bytes()
    assert read_tokenizer(epath.Path(tmp_path / "again")).vocab_hash == ours.vocab_hash


def test_older_files_of_roberta(texts, tmp_path, transformers):
    trained = json.loads(train_tokenizer("bpe", texts, vocab_size=400).definition)["model"]
    names = dict(zip(SPECIAL_TOKENS, ("<pad>", "<unk>", "<s>", "</s>", "<mask>")))
    vocab = {names.get(token, token): id_ for token, id_ in trained["vocab"].items()}
    folder(tmp_path / "model")
    (tmp_path / "model" / "vocab.json").write_text(json.dumps(vocab))
    merges = "\n".join(["#version: 0.2", *map(" ".join, trained["merges"]), ""])
    (tmp_path / "model" / "merges.txt").write_text(merges)
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path / "model")
    ours = read_tokenizer(epath.Path(tmp_path / "model"))
    a, b = ours.encode(TEXTS)
    assert theirs(*TEXTS)["input_ids"] == [2, *a, 3, 3, *b, 3]
    assert ours.separators == 2
    # <mask> takes the space before it.
    assert ours.encode_marked("x <mask>.") == [*ours.encode(["x"])[0], 4, *ours.encode(["."])[0]]


def test_bert_with_another_normalizer_is_read(tmp_path, transformers):
    """WordPiece whose tokenizer.json is not BERT's, which could not be read before."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {token: id_ for id_, token in enumerate((*SPECIAL_TOKENS, "the", "##re", "cat"))}
    theirs = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer(epath.Path(tmp_path))
    assert ours.description == "8 tokens, WordPiece, cased"
    assert ours.encode(["there cat Cat"]) == [[5, 6, 7, 1]]

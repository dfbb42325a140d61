"""Added tokens of other tokenizers: the same ids as in `tokenizers`, in every format."""

import json
import shutil

import numpy as np
import pytest
from etils import epath
from others import VOCAB, write_model
from tokenizers import AddedToken, BertWordPieceTokenizer, Tokenizer

from bert_jax.__main__ import main
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.interop.tokenizer import read_tokenizer

pytestmark = pytest.mark.core

TEXTS = [
    "The [E1] cat [/E1] sat",
    "the[E1]cat <e2>on mat",
    "Covid covids xcovid [e1] new  york",
    "[MASK] [SEP] [unused0]",
    "",
]
MARKED = [*VOCAB[:1], "[E1]", "[/E1]", *VOCAB[3:]]  # in the places of unused tokens


def add_tokens(path):
    """Markers in the vocabulary, and tokens of every kind behind it."""
    tokenizer = BertWordPieceTokenizer(str(path / "vocab.txt"), lowercase=True)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("[E1]", "[/E1]")])
    tokenizer.add_special_tokens(["<e2>"])
    tokenizer.add_tokens(["covid", AddedToken("york", single_word=True)])
    tokenizer.save(str(path / "tokenizer.json"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("added") / "model"
    write_model(path, vocab=tuple(MARKED), rows=len(MARKED) + 2)  # york has its place already
    add_tokens(path)
    return path


def reference(path):
    """As `tokenizers` has it, with the five special tokens of a text as plain text."""
    fields = json.loads((path / "tokenizer.json").read_text())
    plain = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    fields["added_tokens"] = [x for x in fields["added_tokens"] if x["content"] not in plain]
    return Tokenizer.from_str(json.dumps(fields))


def test_texts_have_the_ids_of_the_reference(model, tmp_path):
    tokenizer, wordpiece = reference(model), read_tokenizer(epath.Path(model))
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert wordpiece.vocab[-2:] == ("<e2>", "covid")
    assert wordpiece.encode(TEXTS) == expected
    assert [wordpiece.vocab[i] for i in expected[0]] == ["the", "[E1]", "cat", "[/E1]", "sat"]
    wordpiece.save(tmp_path)
    assert len((tmp_path / "vocab.txt").read_text().splitlines()) == len(MARKED)
    again = load_wordpiece(tmp_path)
    assert again == wordpiece
    assert again.vocab_hash == wordpiece.vocab_hash
    special = {wordpiece.vocab[i] for i in wordpiece.special_ids}
    assert special == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[E1]", "[/E1]", "<e2>"}


def test_every_format_keeps_them(model, tmp_path):
    whole = Tokenizer.from_file(str(model / "tokenizer.json"))
    ours, again = tmp_path / "ours", tmp_path / "again"
    assert main(["convert", str(model), str(ours), "--to=bert_jax"]) == 0
    assert main(["convert", str(ours), str(again), "--to=huggingface"]) == 0
    written = Tokenizer.from_file(str(again / "tokenizer.json"))
    for text in TEXTS:
        assert written.encode(text).ids == whole.encode(text).ids
    assert read_tokenizer(epath.Path(again)) == read_tokenizer(epath.Path(model))


def test_transformers_reads_them_back(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    wordpiece = read_tokenizer(epath.Path(model))
    path = tmp_path / "again"
    assert main(["convert", str(model), str(path), "--to=huggingface"]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == [4, *wordpiece.encode_marked(text), 5]


def test_files_of_older_versions(model, tmp_path):
    """added_tokens.json has the ids, special_tokens_map.json says which are special."""
    path = shutil.copytree(model, tmp_path / "model")
    (path / "tokenizer.json").unlink()
    size = len(MARKED)
    (path / "added_tokens.json").write_text(json.dumps({"covid": size + 1, "<e2>": size}))
    fields = {"additional_special_tokens": ["[E1]", {"content": "[/E1]"}, "<e2>"]}
    (path / "special_tokens_map.json").write_text(json.dumps(fields))
    wordpiece, expected = (read_tokenizer(epath.Path(x)) for x in (path, model))
    assert wordpiece.vocab == expected.vocab
    assert wordpiece.encode(TEXTS[:2]) == expected.encode(TEXTS[:2])
    np.testing.assert_array_equal(wordpiece.special_ids, expected.special_ids)


def test_they_may_follow_the_last_word_before_blank_lines(model, tmp_path):
    path = shutil.copytree(model, tmp_path / "model")
    (path / "tokenizer.json").unlink()
    (path / "added_tokens.json").write_text(json.dumps({"<e2>": len(MARKED)}))
    expected = read_tokenizer(epath.Path(path))
    with (path / "vocab.txt").open("a") as file:
        file.write("\n\n")
    assert read_tokenizer(epath.Path(path)) == expected


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("added_tokens.json", {"<x>": 500}, r"added token '<x>' has id 500, but there .* no token"),
        ("added_tokens.json", {"<x>": 5}, r"added token '<x>' has id 5, but .* has '\[SEP\]'"),
        ("added_tokens.json", {"cat": 999}, "added token 'cat' has id 999, but is token"),
        ("added_tokens.json", {"x": "5"}, r"field \[\.\.\.\]: expected int"),
        ("added_tokens.json", [1], "expected object"),
        ("special_tokens_map.json", {"additional_special_tokens": ["<x>"]}, "'<x>' has no id"),
        ("special_tokens_map.json", {"additional_special_tokens": 3}, "expected array"),
        ("special_tokens_map.json", {"mask_token": "<mask>"}, r"mask_token is '<mask>'; only \[M"),
        ("tokenizer_config.json", {"cls_token": {"content": "<s>"}}, "cls_token is '<s>'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"a": {"content": "x"}}}, "not an id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": "x"}}, "expected object"),
        ("tokenizer_config.json", {"do_lower_case": "yes"}, "field do_lower_case: expected bool"),
    ],
)
def test_what_cannot_be_right_is_named(model, tmp_path, name, fields, message):
    path = shutil.copytree(model, tmp_path / "model")
    (path / "tokenizer.json").unlink()
    if name == "tokenizer_config.json":
        fields = {"do_lower_case": True} | fields
    (path / name).write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message) as error:
        read_tokenizer(epath.Path(path))
    assert "\n" not in str(error.value)

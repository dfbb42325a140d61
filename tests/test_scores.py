"""Scores of texts: each token from a copy in which it is masked, as a plain loop finds them."""

import json

import numpy as np
import plain_bert
import pytest
from portables import make_portable
from test_lineages import VOCAB as WORDS
from test_lineages import reference

from bert_jax.__main__ import main
from bert_jax.data.masked_copies import tokens_of
from bert_jax.data.train_tokenizer import train_tokenizer
from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError
from bert_jax.inference.exported import write_exported
from bert_jax.inference.trained import TrainedBert, load
from bert_jax.inference.uses.score import default_method
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.architecture import Numerics

pytestmark = pytest.mark.core

VOCAB = (*WORDS[:-6], "a", "b", "##a", "##b", "##c", ".")
MASK_ID, UNK_ID = VOCAB.index("[MASK]"), VOCAB.index("[UNK]")
# Texts as words, and those as pieces.
TEXTS = [
    [["word1"], ["word2", "##a", "##b"], ["a", "##c"], ["."]],
    [["b"]],
    [["word9", "##c", "##c", "##c"], ["word9", "##c"]],
    [[f"word{n}"] for n in range(20)],
    [["[UNK]"], ["a"], ["word30", "##b"], ["[UNK]"], ["."], ["."]],
]
SPELLED = [
    " ".join("%" if word == ["[UNK]"] else "".join(word).replace("#", "") for word in text)
    for text in TEXTS
]


@pytest.fixture(scope="module")
def wordpiece():
    return WordPiece(VOCAB, lowercase=True)


def plain_loop(torch, model, words, method) -> list[float]:
    """The log probability of each piece of a text, from one forward pass of torch each."""
    pieces = [(number, piece) for number, word in enumerate(words) for piece in word]
    ids = [VOCAB.index(piece) for _, piece in pieces]
    found = []
    for index, (word, _) in enumerate(pieces):
        masked = list(ids)
        for other in range(index, len(ids)):
            if other == index or (method == "within-word" and pieces[other][0] == word):
                masked[other] = MASK_ID
        row = torch.tensor([[0, *masked, 2]])
        with torch.no_grad():
            logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        read = logits[0, index if method == "mntp" else 1 + index]
        found.append(read.log_softmax(-1)[ids[index]].item())
    return found


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", "BertForMaskedLM"),
        ("roberta", "RobertaForMaskedLM"),
        ("modernbert", "ModernBertForMaskedLM"),
        ("electra", "ElectraForMaskedLM"),
        ("esm", "EsmForMaskedLM"),
    ],
)
def test_every_lineage_scores_as_torch_does(torch, wordpiece, tmp_path, name, head):
    """On 8 devices, with the copies of all texts packed into rows."""
    model = reference(torch, wordpiece, tmp_path / "model", name, head)
    bert = load(tmp_path / "model")
    scores = {method: bert.score(SPELLED, method) for method in ("pll", "within-word")}
    for method, found in scores.items():
        for score, words in zip(found, TEXTS, strict=True):
            assert score.tokens == [piece for word in words for piece in word]
            expected = plain_loop(torch, model, words, method)
            np.testing.assert_allclose(score.log_probs, expected, rtol=0, atol=1e-4)
            assert score.total == pytest.approx(sum(expected), abs=1e-4)
    # The masked token is read one place earlier.
    (found,) = bert.score(SPELLED[:1], "mntp")
    expected = plain_loop(torch, model, TEXTS[0], "mntp")
    np.testing.assert_allclose(found.log_probs, expected, rtol=0, atol=1e-4)
    # Only the first pieces of words of several pieces differ.
    different = [np.abs(a.log_probs - b.log_probs) > 1e-4 for a, b in zip(*scores.values())]
    assert [*map(list, different)] == [
        [index < len(word) - 1 for word in words for index in range(len(word))] for words in TEXTS
    ]


@pytest.fixture(scope="module")
def model(wordpiece):
    return make_portable(wordpiece, ("masked_lm",))


@pytest.fixture(scope="module")
def bert(model):
    return TrainedBert(model)


def test_words_of_other_tokenizers_come_from_the_text():
    texts = ["Don't be unhappy: unhappiness won't help.", "We, the people, won."] * 3
    tokenizer = train_tokenizer("bpe", texts, vocab_size=290)
    text = "Don't  unhappy."
    tokens = tokens_of(tokenizer, text)
    pieces = [tokenizer.pieces[id_] for id_ in tokens.ids]
    words = []
    for piece, continues in zip(pieces, tokens.continues):
        words = [*words[:-1], words[-1] + piece] if continues else [*words, piece]
    assert [word.strip() for word in words] == ["Don", "'t", "unhappy", "."]
    assert len(pieces) > len(words)


def test_half_precision_is_not_used(model, bert, tmp_path):
    """A model that computes in bf16 has the scores of fp32; an export of it has none."""
    coarse = model._replace(numerics=Numerics(compute_dtype="bfloat16"))
    expected = bert.score(SPELLED[:3])
    for found, score in zip(TrainedBert(coarse).score(SPELLED[:3]), expected, strict=True):
        np.testing.assert_allclose(found.log_probs, score.log_probs, rtol=0, atol=1e-5)

    for name, portable in {"fine": model, "coarse": coarse}.items():
        write_exported(tmp_path / name, portable, ["cpu"])
    found = load(tmp_path / "fine").score(SPELLED[:3])
    np.testing.assert_allclose([s.total for s in found], [s.total for s in expected], atol=1e-5)
    with pytest.raises(UserError, match="the export computes in bfloat16, which is too coarse"):
        load(tmp_path / "coarse").score(SPELLED)


def test_iterators_empty_and_long_texts(bert, caplog):
    """A text without tokens scores 0; one that is too long is cut, as everywhere."""
    texts = ["", SPELLED[0], "\u200b", SPELLED[1], "word1 " * 127 + "word2", ""]
    found = bert.score(iter(texts))
    assert iter(found) is found
    found = [*found]
    assert [len(score.tokens) for score in found] == [0, 7, 0, 1, 126, 0]
    assert found[0].total == found[2].total == found[5].total == 0
    assert found[1].total == pytest.approx(bert.score([SPELLED[0]])[0].total, abs=1e-5)
    assert "1 of 6 texts cut to 128 tokens; the first is number 5, 'word1 word1" in caplog.text
    np.testing.assert_allclose(
        found[4].log_probs, bert.score(["word1 " * 126])[0].log_probs, atol=1e-5
    )
    with pytest.raises(UserError, match="method='mask': use one of pll, within-word, mntp, causal"):
        bert.score(texts, "mask")
    with pytest.raises(UserError, match="text number 1 must be a string, not"):
        bert.score([("a", "b")])


def test_causal_scores_are_those_of_a_plain_model(model, bert, tmp_path):
    """Each token from those before it; one row a text in the reference, packed here."""
    params, size = model.params, len(VOCAB)
    table = params["bert"]["embeddings"]["word"]["embedding"]
    found = bert.score([*SPELLED, ""], "causal")
    assert found.pop().total == 0
    for score, words in zip(found, TEXTS, strict=True):
        ids = np.array([0, *(VOCAB.index(piece) for word in words for piece in word), 2])
        heads = model.architecture.num_heads
        hidden = plain_bert.encode(params["bert"], ids, 0 * ids, True, heads=heads)
        logits = np.asarray(plain_bert.words(params, hidden, table, size), np.float64)
        expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = expected[np.arange(len(ids) - 2), ids[1:-1]]
        np.testing.assert_allclose(score.log_probs, expected, rtol=0, atol=1e-4)
        assert score.total == pytest.approx(expected.sum(), abs=1e-3)
    write_exported(tmp_path / "export", model, ["cpu"])
    with pytest.raises(UserError, match="an export has no causal scores"):
        load(tmp_path / "export").score(SPELLED, "causal")


@pytest.mark.parametrize(
    ("objective", "method"),
    [
        ({"name": "mlm_nsp"}, "pll"),
        ({"name": "hybrid"}, "mntp"),
        ({"name": "hybrid", "causal_share": 0.25}, "mntp"),
        ({"name": "hybrid", "causal_share": 1.0}, "causal"),
    ],
)
def test_the_method_fits_the_objective(model, bert, objective, method, tmp_path):
    """A run of masked next-token prediction is read one place earlier."""
    assert default_method(tmp_path) == "pll"
    write_workdir(tmp_path / "model", model)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"objective": objective}))
    loaded = load(tmp_path / "model")
    assert loaded.method == method
    (found,), (expected,) = loaded.score(SPELLED[:1]), bert.score(SPELLED[:1], method)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=0, atol=1e-5)


def test_on_the_command_line(model, bert, tmp_path, capsys):
    write_workdir(tmp_path / "model", model)
    file = tmp_path / "texts.jsonl"
    rows = [{"id": n, "text": text, "score": 0} for n, text in enumerate(SPELLED)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["predict", "score", f"--model={tmp_path / 'model'}"]
    assert main([*command, str(file), "--method=within-word"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, row, score in zip(lines, rows, bert.score(SPELLED, "within-word"), strict=True):
        assert (line["id"], line["text"], line["input_score"]) == (row["id"], row["text"], 0)
        assert line["score"] == pytest.approx(score.total, abs=1e-5)
        assert line["token_scores"] == pytest.approx(score.log_probs.tolist(), abs=1e-5)
        assert (line["tokens"], line["num_tokens"]) == (score.tokens, len(score.tokens))


def test_a_model_without_the_head_is_refused(wordpiece, tmp_path, capsys):
    write_workdir(tmp_path / "model", make_portable(wordpiece, ("pooler",)))
    assert main(["predict", "score", f"--model={tmp_path / 'model'}", "word1"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "the model has no masked_lm: use one that has, or add it with `bert-jax conv" in error

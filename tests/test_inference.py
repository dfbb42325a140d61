"""A trained model in use: what comes out does not depend on how texts are laid out in rows."""

import functools
import itertools
import json
import lzma
from collections.abc import Iterator
from importlib.resources import files

import jax
import numpy as np
import pytest
from portables import make_portable

import bert_jax
from bert_jax.data.packing import TOKENS_PER_SLOT, Example, pack
from bert_jax.data.sentences import split_sentences
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.inference import devices
from bert_jax.inference.batching import SHORTEST_ROW, row_lengths
from bert_jax.inference.functions import part_functions
from bert_jax.inference.trained import TrainedBert, load
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.heads import PRETRAINING
from bert_jax.model.model import build_model

pytestmark = pytest.mark.core

POSITIONS = 128


@pytest.fixture(scope="module")
def texts():
    """100 sentences of the corpus and 20 pairs of them."""
    with lzma.open(files("bert_jax") / "corpora" / "sotu.jsonl.xz", "rt", encoding="utf-8") as file:
        lines = itertools.islice(file, 0, None, 25)
        sentences = [s for line in lines for s in split_sentences(json.loads(line)["text"])]
    chosen = np.random.default_rng(0).choice(len(sentences), 140, replace=False)
    chosen = [sentences[i] for i in chosen]
    return chosen[:100] + list(zip(chosen[100:120], chosen[120:]))


@pytest.fixture(scope="module")
def model(sotu_store):
    return make_portable(load_wordpiece(sotu_store), PRETRAINING)


@pytest.fixture(scope="module")
def bert(model):
    return TrainedBert(model)


@pytest.fixture(scope="module")
def functions(model):
    """Of the model, for rows that hold one text."""
    graphdef = build_model(model.architecture, model.numerics, parts=PRETRAINING).graphdef
    functions = part_functions(graphdef, PRETRAINING)
    return {
        name: jax.jit(functools.partial(function, model.params))
        for name, function in functions.items()
    }


def alone(functions, example) -> np.ndarray:
    """Hidden states [num_layers + 1, tokens, hidden] of a text in a row of its own."""
    length = len(example.ids)
    positions = np.arange(length)
    columns = (example.ids, positions >= example.b_start, positions, np.ones(length))
    rows = [np.zeros((1, POSITIONS), np.int32) for _ in columns]
    for row, column in zip(rows, columns):
        row[0, :length] = column
    return np.asarray(functions["encoder"](*rows))[:, 0, :length]


def test_rows():
    lengths = np.random.default_rng(0).integers(2, 513, 3000)
    lengths[:1000] %= 40
    lengths[:1000] += 2
    packed = pack(lengths.tolist(), row_lengths(512))
    assert list(packed) == [64, 128, 256, 512]
    rows = [(size, row) for size, rows in packed.items() for row in rows]
    assert sorted(example for _, row in rows for example in row) == list(range(3000))
    for size, row in rows:
        assert sum(lengths[row]) <= size
        assert len(row) <= size // TOKENS_PER_SLOT
        assert size == SHORTEST_ROW or max(lengths[row]) > size // 2
    assert sum(lengths) > 0.99 * sum(size for size, _ in rows)
    assert row_lengths(512) == list(packed)
    assert row_lengths(40) == [40]
    assert row_lengths(200) == [64, 128, 200]


def test_texts_in_shared_rows_are_as_alone(bert, functions, texts):
    layers = range(bert.architecture.num_layers + 1)
    found = bert.encode(texts, "tokens", layers)
    assert len(found) == len(texts)
    for index in range(0, len(texts), 7):
        expected = np.swapaxes(alone(functions, bert.tokenize(texts[index])), 0, 1)
        np.testing.assert_allclose(found[index], expected, rtol=0, atol=1e-5)
        assert len(found[index]) == len(bert.tokens(texts[index]))


def test_poolings(bert, texts):
    texts = texts[80:110]
    tokens = bert.encode(texts, "tokens")
    assert {vectors.dtype for vectors in tokens} == {np.dtype(np.float32)}
    mean, cls = bert.encode(texts), bert.encode(texts, "cls")
    assert mean.shape == cls.shape == (len(texts), 128)
    np.testing.assert_allclose(mean, [v.mean(axis=0) for v in tokens], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cls, [v[0] for v in tokens], rtol=0, atol=1e-5)
    pooler = bert.params["bert"]["pooler"]
    expected = np.tanh(cls @ pooler["kernel"] + pooler["bias"])
    np.testing.assert_allclose(bert.encode(texts, "pooled"), expected, rtol=0, atol=1e-5)


def test_layers(bert, texts):
    several = bert.encode(texts[:20], layers=[0, -1])
    assert several.shape == (20, 2, 128)
    for place, layer in ((0, 0), (0, -3), (1, 2), (1, -1)):
        one = bert.encode(texts[:20], layers=layer)
        np.testing.assert_allclose(several[:, place], one, rtol=0, atol=1e-5)
    assert bert.encode([], layers=[0, -1]).shape == (0, 2, 128)
    assert bert.encode([], "tokens") == []


def test_few_shapes_are_compiled(model, texts, monkeypatch):
    monkeypatch.setitem(devices.TOKENS_PER_DEVICE, "cpu", 512)
    bert, compiled = TrainedBert(model), []
    bert.encode(texts[:1])
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for count in (1, 2, 7, 30, 70, 120):
        bert.encode(texts[:count])
    assert 0 < len(compiled) < 2 + 3  # rows of 64 in 8, 2 or 1 a device, of 128 in 4 or 1
    compiled.clear()
    for count in (3, 20, 50, 110):
        bert.encode(texts[-count:])
    assert not compiled


def test_streams_are_bounded_and_in_order(model, texts, monkeypatch):
    monkeypatch.setattr(devices, "TOKENS_PER_WINDOW", 500)
    monkeypatch.setitem(devices.TOKENS_PER_DEVICE, "cpu", 64)
    bert, read = TrainedBert(model), []

    def endless():
        for text in itertools.cycle(texts):
            read.append(text)
            yield text

    stream = bert.encode(endless())
    found = np.stack(list(itertools.islice(stream, 150)))
    stream.close()
    assert len(read) < 150 + 4 * 40, "a window has less than 40 texts"
    expected = bert.encode(texts)
    np.testing.assert_allclose(found[:120], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[120:], expected[:30], rtol=0, atol=1e-5)


def test_an_iterator_gives_an_iterator(model, bert, texts):
    """With the same results as a sequence, one after the other."""
    texts, pairs, masked = texts[90:110], texts[100:110], ["[MASK] a", "b [MASK] [MASK]"]
    several = bert.encode(iter(texts), "cls", [0, -1])
    assert isinstance(several, Iterator)
    np.testing.assert_array_equal(np.stack([*several]), bert.encode(texts, "cls", [0, -1]))
    follows = bert.next_sentence(iter(pairs))
    assert isinstance(follows, Iterator)
    np.testing.assert_array_equal([*follows], bert.next_sentence(pairs))
    guesses = bert.fill_mask(iter(masked))
    assert isinstance(guesses, Iterator)
    assert [*guesses] == bert.fill_mask(masked)
    for mistake in (
        lambda: bert.encode(iter(texts), "sum"),
        lambda: bert.fill_mask(iter(masked), top_k=0),
        lambda: bert.classify(iter(texts)),
        lambda: bert.tag(iter(["a"])),
        lambda: bert.answer(iter([("a", "b")])),
    ):
        with pytest.raises(UserError):
            mistake()  # and not at the first result


def test_a_classifier_without_labels_is_a_regression(sotu_store, texts):
    parts = ("pooler", "sequence_classifier")
    model = make_portable(load_wordpiece(sotu_store), parts)
    classes, expected = TrainedBert(model), TrainedBert(model).encode(texts[:9], "pooled")
    head = model.params["sequence_classifier"]
    expected = expected @ head["kernel"] + head["bias"]
    found = classes.classify(texts[:9])
    for probabilities, logits in zip(found, expected):
        assert [*probabilities.values()] == sorted(probabilities.values(), reverse=True)
        named = [probabilities[label] for label in model.labels]
        np.testing.assert_allclose(named, jax.nn.softmax(logits), rtol=0, atol=1e-5)
    assert [*classes.classify(iter(texts[:9]))] == found

    head = {name: values[..., 1:2] for name, values in head.items()}
    params = model.params | {"sequence_classifier": head}
    scores = TrainedBert(model._replace(params=params, labels=())).classify(texts[:9])
    np.testing.assert_allclose(scores, expected[:, 1], rtol=0, atol=1e-5)
    assert {type(score) for score in scores} == {float}


def test_truncation_is_told(bert, caplog):
    word = "peace " * 10
    texts = ["Peace.", ("one two three", word * 20), (word * 20, word), "Peace."]
    assert bert.encode(texts).shape == (4, 128)
    (message,) = caplog.messages
    assert message.startswith("2 of 4 texts cut to 128 tokens; the first is number 2, ('one two")
    cut = bert.tokens(texts[1])
    assert len(cut) == POSITIONS
    assert " ".join(cut).startswith(" ".join(bert.tokens("one two three")))
    caplog.clear()
    bert.encode(texts[:1])
    assert not caplog.messages


def test_next_sentence(bert, functions, texts):
    pairs = texts[100:]
    found = bert.next_sentence(pairs)
    assert found.shape == (20,)
    for index in range(0, 20, 3):
        hidden = alone(functions, bert.tokenize(pairs[index]))
        logits = functions["next_sentence"](functions["pooler"](hidden[-1, :1]))[0]
        expected = np.exp(logits[0]) / np.exp(logits).sum()
        assert found[index] == pytest.approx(float(expected), abs=1e-5)
    assert np.ptp(found) > 0.01, "pairs differ"


def test_fill_mask(bert, functions, texts):
    masked = [f"[MASK] {text[:200]} [MASK] end" for text in texts[:40]] + ["[MASK]" * 60, "[MASK]"]
    guesses = bert.fill_mask(masked, top_k=3)
    assert [len(masks) for masks in guesses] == [2] * 40 + [60, 1]
    vocab, mask_id = bert.tokenizer.vocab, bert.tokenizer.mask_id
    for text, masks in zip(masked, guesses):
        start, *pieces = bert.tokenizer.encode(text.split("[MASK]"))
        ids = [bert.tokenizer.cls_id, *start]
        for piece in pieces:
            ids += [mask_id, *piece]
        ids = np.array([*ids, bert.tokenizer.sep_id])
        hidden = alone(functions, Example(ids, len(ids)))[-1, ids == mask_id]
        probabilities = jax.nn.softmax(functions["masked_lm"](np.resize(hidden, (60, 128))))
        for expected, mask in zip(np.asarray(probabilities), masks):
            found = [guess.probability for guess in mask]
            np.testing.assert_allclose(found, np.sort(expected)[::-1][:3], rtol=1e-4)
            named = [expected[vocab.index(guess.token)] for guess in mask]
            np.testing.assert_allclose(found, named, rtol=1e-4)
    ((every,),) = bert.fill_mask(["[MASK]"], top_k=1000)
    assert {guess.token for guess in every} == set(vocab), "and nothing of the padding"


def test_load(model, bert, texts, tmp_path):
    write_workdir(tmp_path / "model", model)
    expected = bert.encode(texts)
    np.testing.assert_array_equal(bert_jax.load(tmp_path / "model").encode(texts), expected)
    rounded = load(tmp_path / "model", compute_dtype="bfloat16").encode(texts)
    assert rounded.dtype == np.float32
    difference = np.abs(rounded - expected).max()
    assert 0 < difference < 0.1
    with pytest.raises(UserError, match="compute_dtype='float16': use float32 or bfloat16"):
        load(tmp_path / "model", compute_dtype="float16")
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        bert_jax.lod  # noqa: B018


def test_missing_heads(model):
    bert = TrainedBert(model._replace(params={"bert": {**model.params["bert"]}}))
    with pytest.raises(UserError, match=r"no masked_lm: .*convert --initialise=masked_lm"):
        bert.fill_mask(["[MASK]"])
    with pytest.raises(UserError, match="has no sequence_classifier: fine-tune it with `bert-"):
        bert.classify(["A"])
    with pytest.raises(UserError, match="has no next_sentence: use"):
        bert.next_sentence([("A", "B")])
    del bert.functions["pooler"]
    with pytest.raises(UserError, match="has no pooler and no next_sentence: use"):
        bert.next_sentence([("A", "B")])
    with pytest.raises(UserError, match="has no pooler: use"):
        bert.encode(["A"], "pooled")


MISTAKES = {
    "texts must be a list, each of them a .*, not 'Peace'": lambda bert: bert.encode("Peace"),
    "number 2 must be a string or a pair of strings, not 5": lambda bert: bert.encode(["a", 5]),
    r"number 1 must be a .*, not \('a', 'b', 'c'\)": lambda bert: bert.encode([("a", "b", "c")]),
    "number 1 must be a pair of strings, not 'ab'": lambda bert: bert.next_sentence(["ab"]),
    r"number 1 must be a string, not \('\[MASK\]'": lambda bert: bert.fill_mask([("[MASK]", "b")]),
    "pooling='sum': use one of mean, max, cls": lambda bert: bert.encode(["a"], "sum"),
    r"layer 3: there are 0 \(embeddings\) to 2": lambda bert: bert.encode(["a"], layers=3),
    r"layer -4: there are": lambda bert: bert.encode(["a"], layers=[0, -4]),
    "pooling='pooled' takes only the last layer": lambda bert: bert.encode(["a"], "pooled", 1),
    r"no \[MASK\] in 'Peace'": lambda bert: bert.fill_mask(["[MASK]", "Peace"]),
    "'.*has 202 tokens, the model has 128": lambda bert: bert.fill_mask(["[MASK]" * 200]),
    "top_k=0: must be from 1 to 1000": lambda bert: bert.fill_mask(["[MASK]"], top_k=0),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistake(bert, message):
    with pytest.raises(UserError, match=message) as raised:
        MISTAKES[message](bert)
    assert "\n" not in str(raised.value)

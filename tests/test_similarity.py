"""Similarity: what is read, both losses beside loops, ranks, and what is learned."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from scipy.stats import spearmanr
from tiny import make_model
from words import WORDPIECE, WORDS

from bert_jax import load
from bert_jax.__main__ import main
from bert_jax.data.packing import Example, fill_rows
from bert_jax.errors import UserError
from bert_jax.model.heads import COSINE_SCORE, InBatchNegatives
from bert_jax.objective.finetuning import FineTuning
from bert_jax.tasks import SimilarityTask
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.similarity.ranks import of_random_order, ranks, retrieval_metrics

SCORED = SimilarityTask(score="score")
PAIRS = SimilarityTask()


def pairs_of(count, seed=0, words=WORDS[:20]):
    """Pairs of texts; each word of the second one is another name of one of the first."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        numbers = random.choice(len(words), random.integers(2, 6), replace=False)
        names = [f"w{number + 20}" for number in random.permutation(numbers)]
        found.append((" ".join(words[number] for number in numbers), " ".join(names)))
    return found


def written(path, rows):
    names = ("text_a", "text_b", "score")
    lines = [json.dumps(dict(zip(names, row))) + "\n" for row in rows]
    path.write_text("".join(lines))
    return str(path)


def vectors_of(head, params, graphdef, packed, count):
    objective = FineTuning(graphdef, head)
    rows = jax.tree.map(jnp.asarray, packed.rows)
    logits = objective.logits(params, rows)
    vectors = [None] * count
    for index, found in zip(packed.examples, head.by_example(np.asarray(logits), packed)):
        vectors[index] = found
    return np.array(vectors, np.float64), objective.sums_of(logits, rows)


@pytest.fixture(scope="module")
def encoder():
    graphdef, init, _ = make_model(parts=(), vocab_size=len(WORDPIECE.vocab))
    return graphdef, init(jax.random.key(0))


@pytest.mark.parametrize("packing", [False, True])
def test_a_cosine_learns_its_score(tmp_path, encoder, packing):
    rows = [(*pair, score) for pair, score in zip(pairs_of(7), [0, 5, 2.5, None, 1, 4, ""])]
    examples = SCORED.read(written(tmp_path / "a.jsonl", rows))
    features = SCORED.features(examples, WORDPIECE, 16)
    assert features.counts == {"examples": 7, "truncated": 0, "tokens_cut": 0, "empty_texts": 0}
    batches = ExampleBatches(
        features, COSINE_SCORE, pad_id=0, batch_size=7, seed=None, packing=packing
    )
    graphdef, params = encoder
    vectors, sums = vectors_of(COSINE_SCORE, params, graphdef, batches.packed(0), 14)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    cosines = np.sum(vectors[::2] * vectors[1::2], axis=1)
    known = [0, 1, 2, 4, 5]
    errors = cosines[known] - np.array([0, 5, 2.5, 1, 4]) / 5
    assert sums["task_count"] == 5
    assert sums["task_loss"] == pytest.approx(np.sum(errors**2), rel=1e-4)
    predictions = SCORED.predictions(vectors, features, examples)
    np.testing.assert_allclose(predictions, cosines, rtol=1e-6)
    expected = spearmanr(cosines[known], [0, 5, 2.5, 1, 4]).statistic
    assert SCORED.metrics(predictions, examples)["spearman"] == pytest.approx(expected)
    assert SCORED.baseline(examples, examples) == {"spearman": 0, "pearson": 0}


@pytest.mark.parametrize("packing", [False, True])
def test_the_second_text_is_found_among_those_of_the_batch(tmp_path, encoder, packing):
    """A text that is there twice counts once, and both are right."""
    rows = pairs_of(9)
    rows[6] = (rows[6][0], rows[2][1])
    task = SimilarityTask(temperature=0.1)
    examples = task.read(written(tmp_path / "a.jsonl", rows))
    features = task.features(examples, WORDPIECE, 16)
    batches = ExampleBatches(
        features, task.head, pad_id=0, batch_size=9, seed=None, packing=packing
    )
    graphdef, params = encoder
    vectors, sums = vectors_of(task.head, params, graphdef, batches.packed(0), 18)
    nats, correct = 0.0, 0
    distinct = [n for n in range(9) if n != 6]
    found = []
    for number in range(9):
        own = distinct.index(2 if number == 6 else number)
        cosines = np.array([vectors[2 * number] @ vectors[2 * n + 1] for n in distinct])
        nats += np.log(np.exp(cosines / 0.1).sum()) - cosines[own] / 0.1
        correct += cosines.argmax() == own
        found.append(1 + np.sum(cosines > cosines[own]))
    assert sums["task_count"] == 9
    assert sums["task_loss"] == pytest.approx(nats, rel=1e-4)
    assert sums["task_correct"] == correct
    assert task.predictions(vectors, features, examples).tolist() == found


def test_all_devices_see_all_texts_of_a_batch():
    """The loss of a batch is the same if its rows are split over devices."""
    head, random = InBatchNegatives("text_vector"), np.random.default_rng(0)
    logits = random.normal(size=(8, 4, 16)).astype(np.float32)
    logits /= np.linalg.norm(logits, axis=-1, keepdims=True)
    labels = np.zeros((8, 4, 3), np.float32)
    labels[:, 1::2, 0] = 1
    labels[..., 1] = np.repeat(np.arange(16), 2).reshape(8, 4)
    expected = head.sums(logits, labels, head.weights(labels), {})
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))

    @jax.jit
    def sums(logits, labels):
        return head.sums(logits, labels, head.weights(labels), {})

    found = sums(*(jax.device_put(x, sharding) for x in (logits, labels)))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_an_empty_slot_has_no_vector(encoder):
    graphdef, params = encoder
    ids = np.array([2, 5, 6, 3], np.int32)
    batch = fill_rows([Example(ids, 4)], [[0], []], num_rows=2, row_length=16, pad_id=0)
    objective = FineTuning(graphdef, COSINE_SCORE)
    logits = objective.logits(params, jax.tree.map(jnp.asarray, batch.rows))
    lengths = np.linalg.norm(logits, axis=-1)
    assert lengths[0, 0] == pytest.approx(1, rel=1e-5)
    assert lengths.sum() == pytest.approx(1, rel=1e-5)


def test_ranks_and_their_metrics():
    random = np.random.default_rng(0)
    queries, texts = random.normal(size=(50, 8)), random.normal(size=(20, 8))
    texts[7] = texts[3]  # equally similar: the right one is last
    right = random.integers(0, 20, 50)
    right[:2] = 3, 7
    found = ranks(queries, texts, right)
    for query, own, rank in zip(queries, right, found):
        cosines = texts @ query
        assert rank == np.sum(cosines >= cosines[own])
    assert retrieval_metrics(np.array([1, 2, 10, 11])) == {
        "mrr@10": pytest.approx((1 + 1 / 2 + 1 / 10) / 4),
        "recall@1": 0.25,
        "recall@10": 0.75,
    }
    for count in (4, 40):
        every = retrieval_metrics(np.arange(1, count + 1))
        assert dict(of_random_order(count)) == pytest.approx(every)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (6, r"line 1: score 6 is not from 0 to highest_score=5"),
        (-0.5, r"line 1: score -0.5 is not from 0"),
        ("high", r"line 1: .*'high'"),
        (None, r"a.jsonl: no row has a label in 'score'"),
    ],
)
def test_bad_scores_are_named(tmp_path, score, message):
    source = written(tmp_path / "a.jsonl", [("w1", "w2", score)])
    with pytest.raises(UserError, match=message):
        SCORED.read(source)


def test_retrieval_is_learned(model, tmp_path, capsys):
    """Texts share no word, so it has to be learned which words mean the same."""
    train = written(tmp_path / "train.jsonl", pairs_of(256))
    dev = written(tmp_path / "dev.jsonl", pairs_of(60, seed=1))
    run = tmp_path / "run"
    command = ["finetune", "--config=finetune:similarity", f"--workdir={run}"]
    command += [f"--config.init_from={model}", f"--config.task.train={train}"]
    command += [f"--config.task.dev={dev}", f"--config.task.test={dev}", "--config.epochs=12"]
    command += ["--config.batch_size=32", "--config.optimizer.learning_rate=5e-3"]
    command += ["--config.task.max_seq_length=32", "--config.numerics.compute_dtype=float32"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={run}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["dev"]
    name = ["evaluate", f"--workdir={model}", f"--data={dev}", "--json"]
    assert main([*name, "--config.task=similarity"]) == 0
    before = json.loads(capsys.readouterr().out.splitlines()[-1])[dev]
    assert before["recall@1"] < 0.2 < 0.5 < found["recall@1"]

    # `encode` gives the vectors that were trained, and a converted model has them.
    texts = [json.loads(line) for line in epath.Path(dev).read_text().splitlines()]
    bert = load(run)
    a, b = (bert.encode([text[name] for text in texts]) for name in ("text_a", "text_b"))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    place = {text["text_b"]: number for number, text in enumerate(texts)}
    right = np.array([place[text["text_b"]] for text in texts])
    distinct, right = np.unique(right, return_inverse=True)
    metrics = retrieval_metrics(ranks(a, b[distinct], right))
    assert metrics == pytest.approx({name: found[name] for name in metrics}, abs=1e-3)
    assert main(["convert", str(run), str(tmp_path / "hf"), "--to=huggingface"]) == 0
    again = load(tmp_path / "hf").encode([texts[0]["text_a"]])
    np.testing.assert_allclose(again, bert.encode([texts[0]["text_a"]]), atol=1e-5)

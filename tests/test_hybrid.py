"""Masked next-token prediction and causal prediction, against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain_bert
import pytest
from configured import configured
from tiny import NUMERICS, VOCAB_SIZE, make_batch, make_masking, make_model

from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.model.attention import Reach, attention
from bert_jax.objective.masking import choose_tokens
from bert_jax.objective.protocol import Objective
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import parallelism
from bert_jax.train.metrics import means

pytestmark = pytest.mark.core

PACKED = make_batch([[24, 10], [10, 24], [10, 10, 10], [24, 24], [10], [24, 10], [24], [10, 24]])
MODEL = make_model(parts=("masked_lm",))
MASKING = make_masking(slots=20, masked_lm_prob=0.3)
Z = 0.01


def alone(batch):
    """Each example in a row of its own."""
    lengths = [[int(n)] for row in batch["segment_ids"] for n in np.bincount(row)[1:]]
    return make_batch(lengths)


def bound(share, graphdef=MODEL.graphdef, z_loss=Z):
    fields = {"name": "hybrid", "causal_share": share, "z_loss": z_loss}
    return build(Objective, fields).bind(graphdef, MASKING, seed=3)


@functools.cache
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def total(objective, counts, sums):
    """The loss of the step, from sums of the objective."""
    factors = objective.factors
    return sum(factors.get(h, 1) * sums[f"{h}_loss"] / jnp.maximum(counts[h], 1) for h in counts)


def losses_and_gradients(objective, params, batch, step=0):
    @jax.jit
    def compute(params, batch):
        prepared = objective.prepare(batch, None if step is None else jnp.int32(step))
        counts = {head: jnp.sum(w) for head, w in objective.weights(prepared).items()}

        def loss(params):
            sums = objective.sums(params, prepared)
            return total(objective, counts, sums), sums

        gradients, sums = jax.grad(loss, has_aux=True)(params)
        return gradients, sums, prepared

    return compute(params, batch)


def plain_sums(params, ids, types, seen, chosen, causal):
    """Sum and count of the losses of the tokens of one example."""
    hidden = plain_bert.encode(params["bert"], jnp.where(causal, ids, seen), types, causal, 4)
    table = params["bert"]["embeddings"]["word"]["embedding"]
    logits = plain_bert.words(params, hidden[:-1], table, VOCAB_SIZE)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    losses = normaliser - jnp.take_along_axis(logits, ids[1:, None], axis=-1)[:, 0]
    losses += Z * normaliser**2
    predicted = jnp.where(causal, ids >= 5, chosen)[1:]
    return jnp.sum(losses * predicted), jnp.sum(predicted)


def plain_loss(params, examples, share):
    """From [examples, length] ids, types, seen ids, chosen and [examples] causal, by length."""
    sums = []
    for *arrays, causal in examples:
        losses, counts = jax.vmap(plain_sums, (None, *[0] * 5))(params, *arrays, causal)
        sums.append([losses @ ~causal, counts @ ~causal, losses @ causal, counts @ causal])
    masked, of_masked, causal, of_causal = map(sum, zip(*sums))
    masked, causal = masked / jnp.maximum(of_masked, 1), causal / jnp.maximum(of_causal, 1)
    return (1 - share) * masked + share * causal


@functools.cache
def of_single_examples(share):
    return losses_and_gradients(bound(share), params(), alone(PACKED))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_losses_and_gradients_are_those_of_the_formulas(share):
    objective, batch = bound(share), alone(PACKED)
    gradients, sums, prepared = of_single_examples(share)
    key = jax.random.key(3, impl="threefry2x32")
    choices = jax.device_get(choose_tokens(batch, MASKING, key))
    lengths = (batch["segment_ids"] > 0).sum(axis=1)
    causal = np.asarray(prepared["causal"][:, 0] if share else np.zeros(len(lengths), bool))
    assert 0 < np.mean(causal) < 1 or not share
    seen = np.where(choices.chosen, choices.seen_ids, batch["input_ids"])
    arrays = batch["input_ids"], batch["token_type_ids"], seen, choices.chosen
    examples = [(*(x[lengths == n, :n] for x in arrays), causal[lengths == n]) for n in (10, 24)]
    plain = jax.jit(jax.value_and_grad(functools.partial(plain_loss, share=share)))
    expected, expected_gradients = plain(params(), examples)
    counts = {head: sums[f"{head}_count"] for head in objective.heads}
    assert float(total(objective, counts, sums)) == pytest.approx(float(expected), rel=1e-5)
    assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-5)


def assert_close(left, right, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


def test_packed_rows_and_layouts_compute_the_same():
    """Whether an example is causal follows from it, not from its row or the mesh."""
    objective = bound(0.5)
    gradients, sums, _ = losses_and_gradients(objective, params(), PACKED)
    assert min(float(sums["mntp_count"]), float(sums["clm_count"])) > 20
    assert_close((gradients, sums), of_single_examples(0.5)[:2])
    mesh = make_mesh(2, 2, 2)
    split = make_model(parts=("masked_lm",), parallel=parallelism(mesh, NUMERICS))
    placed = jax.device_put(PACKED, rules.batch_sharding(mesh))
    on_mesh = losses_and_gradients(bound(0.5, split.graphdef), params(), placed)
    assert_close((gradients, sums), on_mesh[:2])


def test_the_share_of_causal_examples():
    batch = make_batch([[6, 6, 6, 6, 6]] * 400)
    prepared = jax.jit(bound(1 / 4).prepare)(batch, jnp.int32(0))
    causal = np.asarray(prepared["causal"])[batch["segment_ids"] > 0]
    assert causal.mean() == pytest.approx(1 / 4, abs=0.03)
    later = {"example_ids": batch["example_ids"] + np.array([1, 0], np.int32)}
    again = jax.jit(bound(1 / 4).prepare)(batch | later, jnp.int32(0))
    assert np.mean(np.asarray(again["causal"]) != np.asarray(prepared["causal"])) > 0.2


def test_evaluation_scores_every_example_in_both_ways():
    """The scores are those of objectives of one kind, whatever the share in training."""
    found = {}
    for share in (0.0, 1 / 16, 1.0):
        objective = bound(share, z_loss=0.0)
        score = jax.jit(lambda p, batch, own=objective: own.sums(p, own.prepare(batch)))
        sums = score(params(), PACKED)
        found[share] = means(
            jax.tree.map(float, sums) | {"tokens": 1, "positions": 1},
            objective.heads,
            objective.factors,
        )
    line, masked, causal = found[1 / 16], found[0.0]["mntp_loss"], found[1.0]["clm_loss"]
    assert line["mntp_loss"] == pytest.approx(masked, rel=1e-5)
    assert line["clm_loss"] == pytest.approx(causal, rel=1e-5)
    assert line["loss"] == pytest.approx(15 / 16 * masked + causal / 16, rel=1e-5)
    assert line["clm_perplexity"] == pytest.approx(np.exp(causal), rel=1e-5)
    assert line["clm_accuracy"] == found[1.0]["clm_accuracy"]


@pytest.mark.parametrize(("length", "window"), [(24, None), (40, None), (40, 8)])
def test_causal_attention_in_blocks(monkeypatch, length, window):
    """No result depends on a later token of a causal example; the others see both sides."""
    monkeypatch.setattr("bert_jax.model.attention.WHOLE_LENGTH", 32)
    arrays = jax.random.normal(jax.random.key(0), (3, 1, length, 2, 4))
    ids = jnp.where(jnp.arange(length) < 15, 1, 2)[None]
    attend = jax.jit(lambda x: attention(*x, ids, reach=Reach(window, causal=ids == 1))[0])
    for i in (3, 14, 20):
        changed = np.array(arrays)
        changed[:, :, i] += 1.0
        results = [np.asarray(attend(each)) for each in (arrays, changed)]
        moved = np.abs(results[1] - results[0]).max(axis=(1, 2)) > 1e-6
        places = np.arange(length)
        near = np.abs(places - i) <= (length if window is None else window // 2)
        same = np.asarray(ids[0]) == int(ids[0, i])
        seen = places >= i if i < 15 else np.ones(length, bool)
        assert np.array_equal(moved, near & same & seen)


def test_what_does_not_fit_is_refused():
    fields = {"objective": "hybrid", "numerics.attention": "splash"}
    fields |= {"numerics.attention_dropout": 0.0, "data.max_seq_length": 128}
    with pytest.raises(UserError, match=r"config\.numerics\.attention='splash' has no causal"):
        configured(**fields)
    assert configured(**fields, **{"objective.causal_share": 0.0})
    with pytest.raises(UserError, match="are masked already: use mlm_nsp"):
        build(Objective, {"name": "hybrid"}).bind(MODEL.graphdef, None, 0)
    with pytest.raises(UserError, match=r"causal_share must be in \[0, 1\], not 1.5"):
        configured(**{"objective": "hybrid", "objective.causal_share": 1.5})

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import VOCAB_SIZE, make_batch, make_masking, make_model

from bert_jax.model.architecture import Architecture
from bert_jax.model.attention import attention
from bert_jax.model.dropout import dropout
from bert_jax.model.heads import MASKED_LM
from bert_jax.model.losses import cross_entropy
from bert_jax.model.positions import sinusoidal_positions
from bert_jax.objective.pretraining import MlmNsp, PreTraining
from bert_jax.train.state import num_params

pytestmark = pytest.mark.core


def objective_and_params(**changes):
    graphdef, init, _ = make_model(**changes)
    masking = make_masking(slots=16)
    return PreTraining(graphdef, masking, seed=0), jax.jit(init)(jax.random.key(0))


def losses_and_gradients(objective, params, batch, dropout_key=None):
    @jax.jit
    def compute(params, batch):
        prepared = objective.prepare(batch)

        def loss(params):
            sums = objective.sums(params, prepared, dropout_key)
            return sums["mlm_loss"] / sums["mlm_count"] + sums["nsp_loss"] / sums["nsp_count"], sums

        return jax.grad(loss, has_aux=True)(params)

    return compute(params, batch)


def assert_trees_close(left, right, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


def test_packed_rows_give_the_losses_and_gradients_of_unpacked_ones():
    objective, params = objective_and_params()
    packed = make_batch([[30, 12], [20, 20], [7, 9, 11]])
    alone = make_batch([[30], [12], [20], [20], [7], [9], [11]])
    packed_gradients, packed_sums = losses_and_gradients(objective, params, packed)
    gradients, sums = losses_and_gradients(objective, params, alone)
    assert sums["mlm_count"] > 15
    assert sums["nsp_count"] == 7
    assert_trees_close(packed_sums, sums)
    assert_trees_close(packed_gradients, gradients)


def test_attention_stays_within_segments():
    key = jax.random.key(0)
    query, keys, values = jax.random.normal(key, (3, 1, 6, 2, 4))
    segment_ids = jnp.array([[1, 1, 1, 2, 2, 0]])
    whole = attention(query, keys, values, segment_ids)
    first = attention(query[:, :3], keys[:, :3], values[:, :3], segment_ids[:, :3])
    np.testing.assert_allclose(whole[:, :3], first, rtol=1e-5)
    np.testing.assert_allclose(whole[:, 5], values[:, 5], rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_layers": False},
        {"remat": "full"},
        {"remat": "dots"},
        {"remat": "full", "scan_layers": False},
    ],
    ids=str,
)
def test_how_it_computes_does_not_change_what_it_computes(changes):
    batch, key = make_batch([[30], [40]]), jax.random.key(3)
    dropouts = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    reference = losses_and_gradients(*objective_and_params(**dropouts), batch, key)
    changed = losses_and_gradients(*objective_and_params(**dropouts, **changes), batch, key)
    assert_trees_close(reference, changed)


def test_bfloat16_computes_near_fp32_and_keeps_fp32_parameters():
    batch = make_batch([[30], [40]])
    objective, params = objective_and_params(compute_dtype="bfloat16", initializer_range=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    gradients, sums = losses_and_gradients(objective, params, batch)
    _, exact = losses_and_gradients(*objective_and_params(initializer_range=0.05), batch)
    assert sums["mlm_loss"] != exact["mlm_loss"]
    np.testing.assert_allclose(sums["mlm_loss"], exact["mlm_loss"], rtol=5e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_padding_words_get_no_probability_and_no_gradient():
    objective, params = objective_and_params()
    table = params["bert"]["embeddings"]["word"]["embedding"]
    assert table.shape[0] == Architecture(vocab_size=VOCAB_SIZE).padded_vocab_size == 384
    gradients, _ = losses_and_gradients(objective, params, make_batch([[40]]))
    assert not np.any(gradients["bert"]["embeddings"]["word"]["embedding"][VOCAB_SIZE:])
    assert not np.any(gradients["masked_lm"]["bias"][VOCAB_SIZE:])


def test_initial_weights_are_a_truncated_normal_and_norms_are_identity():
    _, params = objective_and_params(initializer_range=0.02)
    table = np.asarray(params["bert"]["embeddings"]["word"]["embedding"])
    assert np.abs(table).max() <= 0.04
    assert table.std() == pytest.approx(0.0176, abs=5e-4)  # 0.02 * 0.88, the cut not corrected
    layers = params["bert"]["encoder"]["layers"]
    assert np.all(layers["attention_norm"]["scale"] == 1)
    assert not np.any(layers["attention"]["query"]["bias"])
    kernels = np.asarray(layers["feed_forward"]["intermediate"]["kernel"])
    assert not np.array_equal(kernels[0], kernels[1]), "layers start alike"


def test_sinusoidal_positions_have_no_parameters_and_follow_the_paper():
    _, learned = objective_and_params()
    objective, fixed = objective_and_params(position_embedding="sinusoidal")
    assert num_params(learned) - num_params(fixed) == 64 * 32
    table = sinusoidal_positions(64, 32)
    assert table[5, 4] == pytest.approx(np.sin(5 / 10_000 ** (4 / 32)), abs=1e-6)
    assert table[5, 5] == pytest.approx(np.cos(5 / 10_000 ** (4 / 32)), abs=1e-6)
    _, sums = losses_and_gradients(objective, fixed, make_batch([[40]]))
    assert np.isfinite(sums["mlm_loss"])


def test_gelu_variants_differ():
    batch = make_batch([[40]])
    _, erf = losses_and_gradients(*objective_and_params(), batch)
    _, tanh = losses_and_gradients(*objective_and_params(hidden_act="gelu_tanh"), batch)
    assert erf["mlm_loss"] != tanh["mlm_loss"]
    np.testing.assert_allclose(erf["mlm_loss"], tanh["mlm_loss"], rtol=1e-2)


def test_dropout_keeps_the_mean_and_drops_the_rate():
    x = jnp.ones((400, 400))
    dropped = np.asarray(dropout(x, 0.1, jax.random.key(0)))
    assert np.mean(dropped == 0) == pytest.approx(26 / 256, abs=0.003)
    assert dropped.mean() == pytest.approx(1.0, abs=0.003)
    assert np.array_equal(dropout(x, 0.1, None), x)
    assert np.array_equal(dropout(x, 0.0, jax.random.key(0)), x)


def test_dropout_acts_in_training_only():
    objective, params = objective_and_params(hidden_dropout=0.1)
    batch = jax.jit(objective.prepare)(make_batch([[40]]))
    sums = jax.jit(objective.sums)
    quiet = sums(params, batch)
    assert quiet["mlm_loss"] == sums(params, batch)["mlm_loss"]
    noisy = [sums(params, batch, jax.random.key(n))["mlm_loss"] for n in range(2)]
    assert len({float(quiet["mlm_loss"]), *map(float, noisy)}) == 3


def test_cross_entropy_is_a_sum_over_weighted_positions():
    logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0], [9.0, 9.0, 9.0]])
    labels, weights = jnp.array([0, 2, -1]), jnp.array([1.0, 1.0, 0.0])
    sums = cross_entropy(logits, labels, weights)
    log_probabilities = jax.nn.log_softmax(logits)
    expected = -(log_probabilities[0, 0] + log_probabilities[1, 2])
    assert sums["loss"] == pytest.approx(float(expected))
    assert (sums["correct"], sums["count"]) == (1.0, 2.0)


def test_graphdef_is_hashable_and_reusable():
    graphdef, init, _ = make_model()
    params = jax.jit(init)(jax.random.key(0))
    assert isinstance(hash(graphdef), int)
    assert type(nnx.merge(graphdef, params)).__name__ == "BertWithHeads"


def test_z_loss_is_the_square_of_the_logarithm_of_the_total():
    """A head of its own in training, and none in evaluation."""
    plain, params = objective_and_params()
    batch = make_batch([[30, 12], [20, 20]])
    objective = dataclasses.replace(plain, z_loss=0.01)
    prepared = plain.prepare(batch)
    model = nnx.merge(plain.graphdef, params)
    words = MASKED_LM.apply(model, MASKED_LM.read(model.bert, model.encode(prepared), prepared))
    weights = np.asarray(prepared["masked_lm_weights"], np.float64)
    totals = np.log(np.exp(np.asarray(words, np.float64)).sum(-1))
    sums = objective.sums(params, prepared)
    assert float(sums["z_loss"]) == pytest.approx(0.01 * np.sum(weights * totals**2), rel=1e-5)
    assert float(sums["z_count"]) == weights.sum()
    assert float(sums["mlm_loss"]) == float(plain.sums(params, prepared)["mlm_loss"])
    assert objective.heads == ("mlm", "nsp", "z") == tuple(objective.weights(prepared))
    kind = MlmNsp(z_loss=0.01)
    assert kind.bind(plain.graphdef, None, 0).z_loss == 0.01
    assert kind.for_heldout().bind(plain.graphdef, None, 0).heads == ("mlm", "nsp")

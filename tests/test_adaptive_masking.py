"""Masking that follows how well each word is predicted; its rates are part of the state."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from test_branches import everything
from test_training import assert_same_run, recipe
from tiny import make_batch, make_masking

from bert_jax.api.pretrain import pretrain
from bert_jax.data.stores import open_store
from bert_jax.errors import UserError
from bert_jax.interop.teachers import Teachers
from bert_jax.model.heads import MASKED_LM
from bert_jax.objective import pretraining
from bert_jax.objective.masking import TokenMasking, mask_tokens
from bert_jax.pretraining.parts import Part
from bert_jax.pretraining.stages import trained_parts
from bert_jax.report.metrics_file import read_metrics

KEY = jax.random.key(0)
WORDS = 1000


def adaptive(store, **changes):
    """Five steps, each with a checkpoint; rates are renewed after the second and the fourth."""
    fields = {"steps": 5, "log_every": 1, "eval_every": 5, "checkpoint_every": 1}
    fields |= {"masking": "adaptive", "masking.renew_every": 2, "keep_checkpoints": 5}
    fields |= {"numerics.hidden_dropout": 0.0, "numerics.attention_dropout": 0.0}
    fields |= {"masking.heldout_masked_lm_prob": 0.1, "optimizer.learning_rate": 1e-2}
    return recipe(store, **fields | changes)


@pytest.fixture(scope="module")
def run(sotu_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("adaptive") / "run"
    assert pretrain(adaptive(sotu_store), epath.Path(workdir))
    return workdir


def test_rates_are_those_of_loops(run, sotu_store):
    """From the predictions of each step, read at its own masks, in float64."""
    config = adaptive(sotu_store)
    store = open_store(sotu_store)
    teachers = Teachers(config, store.tokenizer)
    part = Part.build(config.stages()[0], store, trained_parts(config), teachers)
    batches = part.batches(0)

    @jax.jit
    def predict(state, batch):
        from flax import nnx

        batch = part.objective.prepare(
            batch | {"word_rates": state.words.rates[batch["input_ids"]]}, state.step
        )
        model = nnx.merge(part.model.graphdef, state.params)
        hidden = model.encode(batch)
        return batch, MASKED_LM.apply(model, MASKED_LM.read(model.bert, hidden, batch))

    rates, correct, masked = np.ones(WORDS), np.zeros(WORDS), np.zeros(WORDS)
    state = part.initial_state(config.seed, {})
    for step in range(1, 5):
        batch, logits = jax.device_get(predict(state, next(batches)))
        for row, slot in zip(*np.nonzero(batch["masked_lm_weights"])):
            word = batch["masked_lm_ids"][row, slot]
            masked[word] += 1
            correct[word] += logits[row, slot].argmax() == word
        if step % 2 == 0:
            wrong = 1 - (correct + 0.5) / (masked + 1)
            rates = np.maximum(0.2 * rates + 0.8 * wrong, 0.0125)
            rates /= rates.mean()
            correct, masked = 0 * correct, 0 * masked
        state = everything(run, config, step)
        np.testing.assert_allclose(state.words.rates, rates, rtol=1e-5)
        np.testing.assert_array_equal(state.words.correct, correct)
        np.testing.assert_array_equal(state.words.masked, masked)
    assert rates.min() < 0.9 * rates.max()


@pytest.mark.parametrize(
    ("objective", "head"),
    [
        ({"objective": "hybrid", "objective.causal_share": 0.5}, "mntp"),
        ({"objective": "replaced_token"}, "mlm"),
    ],
)
def test_other_objectives_count_their_masked_words(sotu_store, objective, head):
    config = adaptive(sotu_store, **objective, **{"data.pairs": "none"})
    store = open_store(sotu_store)
    teachers = Teachers(config, store.tokenizer)
    part = Part.build(config.stages()[0], store, trained_parts(config), teachers)
    state = part.initial_state(config.seed, {})
    batch = next(part.batches(0))

    @jax.jit
    def sums(state, batch):
        batch = batch | {"word_rates": state.words.rates[batch["input_ids"]]}
        batch = part.objective.prepare(batch, state.step)
        weights = part.objective.weights(batch)[head]
        return batch["masked_lm_ids"], weights, part.objective.sums(state.params, batch)

    ids, weights, found = jax.device_get(sums(state, batch))
    expected = np.bincount(ids.ravel(), weights.ravel(), WORDS)
    assert 0 < expected.sum() < ids.size
    np.testing.assert_array_equal(found["word_masked"], expected)
    assert found["word_correct"].sum() == found[f"{head}_correct"]
    assert (found["word_correct"] <= expected).all()


def test_an_objective_that_counts_no_words_is_refused(sotu_store, monkeypatch, tmp_path):
    monkeypatch.setattr(pretraining, "count_words", lambda *_: {})
    with pytest.raises(UserError, match="adaptive rates need the sums of `count_words`"):
        pretrain(adaptive(sotu_store), epath.Path(tmp_path / "run"))


def test_a_resume_is_exact(run, sotu_store, tmp_path):
    """Within the steps between two renewals."""
    again, config = tmp_path / "again", adaptive(sotu_store)
    shutil.copytree(run, again)
    for step in (4, 5):
        shutil.rmtree(again / "checkpoints" / str(step))
    assert pretrain(config, epath.Path(again))
    assert_same_run(run, again, 5)
    states = [everything(workdir, config, 5) for workdir in (run, again)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_another_layout_gives_the_same_rates(run, sotu_store, tmp_path):
    layout = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.zero1": True}
    config = adaptive(sotu_store, steps=3, **layout)
    assert pretrain(config, epath.Path(tmp_path / "other"))
    found = everything(tmp_path / "other", config, 3).words
    expected = everything(run, adaptive(sotu_store), 3).words
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_phases_keep_the_rates_and_may_begin_to_adapt(run, sotu_store, tmp_path):
    phases = (
        {"steps": 2, "masking": "token"},
        {"steps": 1, "optimizer": {"learning_rate": 1e-3}},
        {"steps": 1},
    )
    config = adaptive(sotu_store, steps=4, phases=phases, eval_every=4)
    workdir = tmp_path / "phases"
    assert pretrain(config, epath.Path(workdir))
    assert float(everything(workdir, config.stages()[1].config, 3).words.masked.sum()) > 0
    rates = everything(workdir, config.stages()[2].config, 4).words.rates
    assert np.mean(rates) == pytest.approx(1)
    assert len(np.unique(rates)) > 1


def test_heldout_masks_are_those_of_token_masking(run, sotu_store):
    masking = adaptive(sotu_store).masking.for_heldout()
    assert type(masking) is TokenMasking
    assert masking.masked_lm_prob == 0.1
    lines = [line for line in read_metrics(run) if line["split"] == "train"]
    assert not [name for line in lines for name in line if name.startswith("word_")]


def test_equal_rates_give_the_masks_of_token_masking():
    batch = make_batch([[40, 17, 6]] * 20, max_seq_length=64)
    weighted = batch | {"word_rates": jnp.full(batch["input_ids"].shape, 3.0)}
    left = mask_tokens(batch, make_masking("token", slots=16), KEY)
    right = mask_tokens(weighted, make_masking("adaptive", slots=16), KEY)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def test_words_are_drawn_by_their_rates():
    """Without replacement, of an example: the first of two draws follows the weights."""
    batch = make_batch([[7]] * 6000, max_seq_length=8)
    weights = np.array([0, 1, 2, 3, 4, 0, 0, 0], np.float32)  # [CLS] and [SEP] are not drawn
    batch["input_ids"][:, 1:5] = [5, 6, 7, 8]
    batch["input_ids"][:, 5:7] = [3, 3]
    batch |= {"word_rates": jnp.broadcast_to(weights, batch["input_ids"].shape)}
    masking = make_masking("adaptive", slots=1, masked_lm_prob=0.15)
    after = jax.jit(lambda batch: mask_tokens(batch, masking, KEY))(batch)
    drawn = np.bincount(after["masked_lm_positions"][:, 0], minlength=5) / 6000
    np.testing.assert_allclose(drawn[1:5], weights[1:5] / 10, atol=0.02)

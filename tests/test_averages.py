"""Averages of the weights: the running one of a run, and the mean of checkpoints."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from test_training import assert_same_run, recipe

import bert_jax
from bert_jax.api.convert import convert
from bert_jax.api.evaluate import evaluate
from bert_jax.api.plan import planned_step
from bert_jax.api.pretrain import pretrain
from bert_jax.cli import convert as convert_verb
from bert_jax.errors import UserError
from bert_jax.interop.formats import read
from bert_jax.report.curves import draw_curves
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.checkpoints import Checkpoints

DECAY = 0.75
LAYOUT = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.zero1": True}
OPTIMIZER = {
    "optimizer.ema_decay": DECAY,
    "optimizer.schedule": "constant",
    "optimizer.gradient_accumulation": 1,
}
PLAIN = {"numerics.hidden_dropout": 0.0, "numerics.attention_dropout": 0.0}


def averaging(store, **changes):
    """Six steps, each with a checkpoint, on eight devices."""
    fields = {"steps": 6, "eval_every": 3, "checkpoint_every": 1, "keep_checkpoints": 6}
    return recipe(store, **fields | LAYOUT | OPTIMIZER | PLAIN | changes)


@pytest.fixture(scope="module")
def run(sotu_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averages") / "run"
    assert pretrain(averaging(sotu_store), epath.Path(workdir))
    return workdir


@pytest.fixture
def copied(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def stored(workdir, step, weights="trained"):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.read_params(step, weights)[0]


def mean(trees):
    return jax.tree.map(lambda *x: np.mean(np.stack(x), 0, np.float64).astype(np.float32), *trees)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), left, right)


def test_the_running_average_is_that_of_a_loop_in_float64(run, sotu_store):
    config = averaging(sotu_store)
    program = planned_step(config, config.mesh.mesh())
    average = jax.device_get(program.init(jax.random.key(config.seed)).params)
    for step in range(1, 7):
        average = jax.tree.map(
            lambda a, p: DECAY * np.float64(a) + (1 - DECAY) * p, average, stored(run, step)
        )
        jax.tree.map(
            lambda found, expected: np.testing.assert_allclose(
                found, expected, rtol=1e-5, atol=1e-7
            ),
            stored(run, step, "ema"),
            average,
        )
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract_state)
    assert shardings.ema == shardings.params


def test_it_may_end_and_start_at_a_resume(run, copied, sotu_store):
    """The parameters are the same, and without it so is the layout of checkpoints."""
    without = {"optimizer.ema_decay": 0.0, "steps": 5, "resume_from": 4}
    assert pretrain(averaging(sotu_store, **without), epath.Path(copied))
    assert_equal(stored(copied, 5), stored(run, 5))
    saved = json.loads((copied / "checkpoints" / "5" / "state" / "_METADATA").read_text())
    groups = {keys.split("'")[1] for keys in saved["tree_metadata"]}
    assert groups == {"step", "params", "opt_state"}
    with pytest.raises(UserError, match=r"5: has no ema: .* if config\.optimizer\.ema_decay is"):
        read(copied, weights="ema")
    assert pretrain(averaging(sotu_store), epath.Path(copied))
    assert_equal(stored(copied, 6), stored(run, 6))
    expected = jax.tree.map(
        lambda a, p: DECAY * a + (1 - DECAY) * p, stored(run, 5), stored(run, 6)
    )
    assert_close(stored(copied, 6, "ema"), expected)


def test_a_resume_goes_on_with_it(run, copied, sotu_store):
    assert pretrain(averaging(sotu_store, resume_from=2), epath.Path(copied))
    assert_equal(stored(copied, 6, "ema"), stored(run, 6, "ema"))
    assert_same_run(run, copied, 6)


def test_it_is_evaluated_beside_the_parameters(run, tmp_path):
    lines = read_metrics(run)
    found = [(line["split"], line["step"]) for line in lines if line["split"] != "train"]
    assert found[1:] == [("heldout", 3), ("heldout_ema", 3), ("heldout", 6), ("heldout_ema", 6)]
    for weights, split in (("trained", "heldout"), ("ema", "heldout_ema")):
        line = next(line for line in lines if line["split"] == split and line["step"] == 3)
        scores = evaluate(run, step=3, weights=weights).scores
        assert scores["mlm_loss"] == pytest.approx(line["mlm_loss"], rel=1e-4)
    draw_curves({"run": lines}, tmp_path / "curves.png")


def test_readers_take_the_weights_that_are_asked_for(run, tmp_path):
    expected = {
        "trained": stored(run, 6),
        "ema": stored(run, 6, "ema"),
        "average:3": mean([stored(run, step) for step in (4, 5, 6)]),
    }
    for weights, params in expected.items():
        assert_close(read(run, weights=weights).params, params)
    assert_equal(read(run, 4, weights="average:1").params, stored(run, 4))
    target = tmp_path / "average"
    convert_verb.main([str(run), str(target), "--to=bert_jax", "--weights=average:3"])
    assert_equal(read(target).params, read(run, weights="average:3").params)
    vectors = {
        weights: bert_jax.load(run, weights=weights).encode(["Fellow citizens."])
        for weights in ("trained", "average:3")
    }
    assert np.abs(vectors["trained"] - vectors["average:3"]).max() > 0
    assert_equal(vectors["average:3"], bert_jax.load(target).encode(["Fellow citizens."]))


def test_only_whole_checkpoints_are_averaged(copied, tmp_path):
    with pytest.raises(UserError, match=r"average of 7 checkpoints, but up to step 6 there are"):
        read(copied, weights="average:7")
    for data in (copied / "checkpoints" / "5" / "state").rglob("d/*"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoints/5: damaged: .*average fewer checkpoints"):
        convert(copied, tmp_path / "average", to="bert_jax", weights="average:3")
    assert not (tmp_path / "average").exists()
    read(copied, 4, weights="average:3")


@pytest.mark.parametrize("weights", ["", "average", "average:0", "average:-1", "mean:3", "EMA"])
def test_other_names_are_refused(weights, run, sotu_store):
    message = rf"weights='{weights}': use trained, ema or average:N"
    with pytest.raises(UserError, match=message):
        read(run, weights=weights)
    with pytest.raises(UserError, match=f"--{message}"):
        convert_verb.main([str(run), "target", "--to=bert_jax", f"--weights={weights}"])
    with pytest.raises(UserError, match=r"config\.init_weights=.*: use trained"):
        recipe(sotu_store, init_weights=weights)

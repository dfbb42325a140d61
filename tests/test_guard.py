"""Steps that a guard skips, and runs that it ends."""

import dataclasses
import shutil
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from test_training import assert_same_run, recipe

from bert_jax.api.pretrain import pretrain
from bert_jax.errors import TrainingDiverged, UserError
from bert_jax.fields import build, field
from bert_jax.objective.pretraining import MlmNsp, PreTraining
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.checkpoints import Checkpoints, latest_step
from bert_jax.train.guard import Guard, GuardState


@dataclass(frozen=True, eq=False)
class PoisonedLosses(PreTraining):
    """The loss of some steps is not finite, or very large."""

    bad: tuple[int, ...] = ()
    large: tuple[int, ...] = ()

    def prepare(self, batch, step=None):
        batch = super().prepare(batch, step)
        if step is None:
            return batch
        factor = jnp.where(jnp.isin(step, jnp.array(self.large or (-1,))), 1e4, 1.0)
        factor = jnp.where(jnp.isin(step, jnp.array(self.bad or (-1,))), jnp.nan, factor)
        return batch | {"factor": jnp.broadcast_to(factor, len(batch["input_ids"]))}

    def sums(self, params, batch, dropout_key=None):
        sums = super().sums(params, batch, dropout_key)
        return sums | {"mlm_loss": sums["mlm_loss"] * jnp.mean(batch.get("factor", jnp.ones(1)))}


@dataclass(frozen=True)
class Poisoned(MlmNsp):
    """Its steps count from 0."""

    bad: tuple[int, ...] = field((), "steps whose gradient is NaN")
    large: tuple[int, ...] = field((), "steps whose gradient is large")

    def bind(self, graphdef, masking, seed):
        return PoisonedLosses(graphdef, masking, seed, 0.0, self.bad, self.large)


def poisoned(store, **changes):
    """Nine steps: the fourth and fifth have no gradient, the eighth a large one."""
    fields = {
        "steps": 9,
        "eval_every": 0,
        "checkpoint_every": 1,
        "keep_checkpoints": 9,
        "objective.name": "test_guard:Poisoned",
        "objective.bad": (3, 4),
        "objective.large": (7,),
        "optimizer.guard.max_skips": 3,
        "optimizer.guard.spike": 10.0,
        "optimizer.guard.memory": 0.5,
        "optimizer.ema_decay": 0.5,
    }
    return recipe(store, **fields | changes)


@pytest.fixture(scope="module")
def run(sotu_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("guard") / "run"
    assert pretrain(poisoned(sotu_store), epath.Path(workdir))
    return workdir


def state(workdir, step):
    """All arrays of a checkpoint but the step and the guard's."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        found, _ = checkpoints._read(step, checkpoints_state)
    return {name: found[name] for name in ("params", "opt_state", "ema")}


def checkpoints_state(path):
    from bert_jax.train.checkpoints import _read_state

    return _read_state(path)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_skipped_step_changes_nothing_but_the_step(run):
    for skipped, before in ((4, 3), (5, 3), (8, 7)):
        assert_equal(state(run, skipped), state(run, before))
    for step in (2, 3, 6, 7, 9):
        kernel, old = (
            state(run, each)["params"]["bert"]["embeddings"]["word"]["embedding"]
            for each in (step, step - 1 or 1)
        )
        assert np.any(kernel != old)


def test_the_next_step_is_that_of_a_run_that_was_not_stopped(run, sotu_store, tmp_path):
    """From the state before the skipped steps; without a guard, and with its gradients whole."""
    shutil.copytree(run, tmp_path / "run")
    off = {"optimizer.guard.max_skips": 0, "steps": 7, "resume_from": 5}
    # The schedule is linear, and a resume may change its length: this one keeps the rate.
    off["optimizer.learning_rate"] = 1e-3 * (1 - 5 / 9) / (1 - 5 / 7)
    config = poisoned(sotu_store, **off)
    assert pretrain(config, epath.Path(tmp_path / "run"))
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        found, _ = checkpoints.read_params(6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        found,
        state(run, 6)["params"],
    )


def test_metrics_count_skipped_steps_and_leave_them_out(run, capsys):
    lines = {line["step"]: line for line in read_metrics(run) if line["split"] == "train"}
    assert {step: line["skipped"] for step, line in lines.items()} == {4: 1, 8: 2, 9: 0}
    for line in lines.values():
        assert 5 < line["loss"] < 9
        assert line["grad_norm"] < 20


@pytest.mark.parametrize("step", [4, 5, 8])
def test_a_resume_amid_skipped_steps_is_the_same_run(step, run, sotu_store, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    assert pretrain(poisoned(sotu_store, resume_from=step), epath.Path(tmp_path / "run"))
    assert_equal(state(tmp_path / "run", 9), state(run, 9))
    assert_same_run(run, tmp_path / "run", 9)


def test_too_many_in_a_row_end_the_run(run, sotu_store, tmp_path):
    """The weights after step 3 have no gradient; those of step 2 had one."""
    workdir = epath.Path(tmp_path / "run")
    shutil.copytree(run, workdir)
    message = (
        r"^3 steps in a row, up to step 6, were skipped: .*"
        r"resume_from=2: the run goes on from the last good checkpoint, of step 2$"
    )
    config = poisoned(sotu_store, resume_from=2, **{"objective.bad": (3, 4, 5, 6, 7, 8)})
    saved = workdir / "config.json"
    saved.write_text(saved.read_text().replace("[\n      3,\n      4\n    ]", "[3, 4, 5, 6, 7, 8]"))
    for _ in range(2):  # the second start goes on within the skipped steps
        with pytest.raises(TrainingDiverged, match=message):
            pretrain(config, workdir)
        assert latest_step(workdir) == 5


def test_spikes_are_judged_by_the_mean_of_accepted_norms():
    guard = Guard(max_skips=2, spike=3.0, memory=0.75)
    memory, mean, weight, accepted = GuardState.start(), 0.0, 0.0, 0
    norms = [9.0, 1.0, 50.0, 2.0, 100.0, 4.0, np.inf, 1.0, 60.0, np.nan, 11.0, 3.0]
    skipped = []
    for norm in norms:
        skip, memory = guard.judge(memory, jnp.float32(norm))
        expected = not np.isfinite(norm) or (accepted >= 4 and norm > 3.0 * mean / weight)
        assert bool(skip) == expected
        skipped.append(expected)
        if not expected:
            mean, weight = 0.75 * mean + 0.25 * norm, 0.75 * weight + 0.25
            accepted += 1
        assert float(memory.mean) == pytest.approx(mean, rel=1e-5)
        assert int(memory.accepted) == accepted
    assert [n for n, bad in zip(norms, skipped) if bad and np.isfinite(n)] == [100.0, 60.0]


def test_only_what_is_above_the_mean_can_be_a_spike(sotu_store):
    with pytest.raises(UserError, match=r"config\.optimizer\.guard\.spike=0\.5 must be above 1"):
        poisoned(sotu_store, **{"optimizer.guard.spike": 0.5})
    assert build(Guard, {}).max_skips == 0
    assert dataclasses.replace(Guard(), spike=2.0).max_skips == 0

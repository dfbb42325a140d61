"""Steps that a guard skips, and runs that it ends."""

import dataclasses
import shutil
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from test_training import recipe
from tiny import make_batch, make_masking, make_model

from bert_jax.api.pretrain import pretrain
from bert_jax.errors import TrainingDiverged, UserError
from bert_jax.fields import build, field
from bert_jax.objective.pretraining import MlmNsp, PreTraining
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.checkpoints import Checkpoints, latest_step
from bert_jax.train.guard import Guard, GuardState
from bert_jax.train.optimizers import AdamW
from bert_jax.train.schedules import Schedule
from bert_jax.train.state import Members, init_state
from bert_jax.train.step import make_train_step


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
        "objective.bad": (3, 4, 9, 10, 11),
        "objective.large": (7,),
        "optimizer.schedule": "constant",
        "optimizer.guard.max_skips": 3,
        "optimizer.guard.spike": 10.0,
        "optimizer.guard.memory": 0.5,
        "optimizer.ema_decay": 0.5,
        "numerics.hidden_dropout": 0.0,
        "numerics.attention_dropout": 0.0,
        "optimizer.gradient_accumulation": 1,
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


def test_the_steps_are_those_of_a_run_without_the_skipped_ones():
    """Each has the batch, the rate and the masks of its number."""
    model = make_model()
    losses = PoisonedLosses(model.graphdef, make_masking(slots=12), 0, 0.0, (1, 3), (5,))
    optimizer = AdamW(bias_correction=True).transformation(model.axes)
    rate = Schedule.kind("linear", "schedule")().rate(1e-3, warmup_steps=2, steps=20)
    guard = Guard(max_skips=2, spike=10.0, memory=0.5)
    steps = [jax.jit(make_train_step(losses, optimizer, rate, guard=x)) for x in (guard, None)]
    state = init_state(model.init, optimizer, jax.random.key(0), Members(guard=True))
    plain = dataclasses.replace(state, guard=None)
    for number in range(7):
        batch = make_batch([[9 + n, 15] for n in range(4)], seed=number)
        state, metrics = steps[0](state, batch, None)
        skips = number in (1, 3, 5)
        assert int(metrics["skipped"]) == skips
        if skips:
            plain = dataclasses.replace(plain, step=plain.step + 1)
        else:
            plain, expected = steps[1](plain, batch, None)
            assert float(metrics["mlm_loss"]) == pytest.approx(float(expected["mlm_loss"]))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            dataclasses.replace(state, guard=None),
            plain,
        )


def test_metrics_count_skipped_steps_and_leave_them_out(run, capsys):
    lines = {line["step"]: line for line in read_metrics(run) if line["split"] == "train"}
    assert {step: line["skipped"] for step, line in lines.items()} == {4: 1, 8: 2, 9: 0}
    for line in lines.values():
        assert 5 < line["loss"] < 9
        assert line["grad_norm"] < 20


def test_too_many_in_a_row_end_the_run(run, sotu_store, tmp_path):
    """The weights after step 9 have no gradient; those of step 8, which are older, had one."""
    workdir = epath.Path(tmp_path / "run")
    shutil.copytree(run, workdir)
    message = (
        r"^3 steps in a row, up to step 12, were skipped: .*"
        r"resume_from=8: the run goes on from the last good checkpoint, of step 8$"
    )
    for _ in range(2):  # the second start goes on within the skipped steps
        with pytest.raises(TrainingDiverged, match=message):
            pretrain(poisoned(sotu_store, steps=14), workdir)
        assert latest_step(workdir) == 11


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

"""Runs of several phases, runs by the clock, and runs that end at a target."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from test_training import assert_same_run, recipe

from bert_jax.api.evaluate import load_trained
from bert_jax.api.plan import planned_step
from bert_jax.api.pretrain import pretrain
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.saved import migrate, read_pretrain_config
from bert_jax.data.stores import open_store
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train import budget
from bert_jax.train.checkpoints import Checkpoints

PHASES = (
    {
        "steps": 6,
        "batch_size": 16,
        "max_seq_length": 32,
        "max_examples_per_row": 2,
        "max_predictions_per_seq": 5,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "gradient_accumulation": 2,
    },
    {
        "steps": 5,
        "batch_size": 8,
        "max_seq_length": 64,
        "max_examples_per_row": 2,
        "max_predictions_per_seq": 10,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "gradient_accumulation": 1,
    },
)


def phased(store: Path, *changes: dict, **fields) -> PretrainConfig:
    """Six steps of 32 tokens, then five of 64."""
    phases = [phase | change for phase, change in zip(PHASES, changes or ({}, {}), strict=True)]
    steps = sum(phase["steps"] for phase in phases)
    # At 4 a checkpoint lies in the first phase, at 8 in the second.
    fields = {"log_every": 4, "eval_every": 0, "checkpoint_every": 4} | fields
    config = recipe(store, **fields).to_dict()
    return build(PretrainConfig, migrate(config | {"phases": phases, "steps": steps}))


def stop_at(monkeypatch, step: int) -> None:
    """Sends SIGTERM as the training batch of this step is put on the devices."""
    put_batch, calls = rules.put_batch, []

    def put_and_stop(batch, mesh):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(batch, mesh)

    monkeypatch.setattr(rules, "put_batch", put_and_stop)


@pytest.fixture(scope="module")
def batches():
    """The input_ids of all training batches of the uninterrupted run."""
    return []


@pytest.fixture(scope="module")
def uninterrupted(batches, sotu_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("phases") / "run"
    put_batch = rules.put_batch

    def put_and_note(batch, mesh):
        batches.append(batch["input_ids"])
        return put_batch(batch, mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "put_batch", put_and_note)
        assert pretrain(phased(sotu_store), epath.Path(workdir))
    return workdir


def test_every_phase_has_its_baseline_its_schedule_and_its_checkpoint(uninterrupted):
    lines = read_metrics(uninterrupted)
    assert [(line["split"], line["step"]) for line in lines] == [
        ("baseline", 0),
        ("train", 4),
        ("train", 6),
        ("heldout", 6),
        ("baseline", 6),
        ("train", 8),
        ("train", 11),
        ("heldout", 11),
    ]
    rates = [line["learning_rate"] for line in lines if line["split"] == "train"]
    # Of the last step, linear: 3 and 5 of 6, then 1 and 4 of 5 steps are over.
    expected = [2e-3 * (1 - 3 / 6), 2e-3 * (1 - 5 / 6), 1e-3 * (1 - 1 / 5), 1e-3 * (1 - 4 / 5)]
    assert rates == pytest.approx(expected, rel=1e-5)
    baselines = [line["mlm_loss"] for line in lines if line["split"] == "baseline"]
    assert baselines[0] != baselines[1]
    checkpoints = {int(path.name) for path in (uninterrupted / "checkpoints").iterdir()}
    assert checkpoints == {8, 11}


def test_the_second_phase_starts_with_its_own_first_batch(uninterrupted, batches, sotu_store):
    assert [ids.shape for ids in batches] == 6 * [(16, 32)] + 5 * [(8, 64)]
    second = phased(sotu_store).stages()[1].config
    rows = np.arange(second.data.batch_size)
    stream = open_store(sotu_store).training_batches(
        second.data, seed=second.seed, host_rows=lambda _: rows
    )
    expected = stream.batch(0)
    np.testing.assert_array_equal(batches[6], expected["input_ids"])


def test_the_second_phase_carries_moments(uninterrupted):
    """The count of the bias correction stays with them."""
    config = read_pretrain_config(epath.Path(uninterrupted) / "config.json")
    abstract = planned_step(config.stages()[1].config, make_mesh()).abstract_state
    with Checkpoints(uninterrupted, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(abstract, 11)
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0]
    assert [int(count) for count in counts] == [11]


@pytest.mark.parametrize("step", [6, 9])
def test_stopped_in_any_phase_and_resumed_is_the_same_run(
    step, uninterrupted, sotu_store, tmp_path, monkeypatch
):
    """With the last step of a phase, and within the next."""
    workdir = epath.Path(tmp_path / "run")
    stop_at(monkeypatch, step)
    assert not pretrain(phased(sotu_store), workdir)
    monkeypatch.undo()
    assert max(int(path.name) for path in (workdir / "checkpoints").iterdir()) == step
    assert pretrain(phased(sotu_store), workdir)
    assert_same_run(uninterrupted, workdir, 11)


def test_a_phase_may_change_until_it_begins(uninterrupted, sotu_store, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    stop_at(monkeypatch, 6)
    assert not pretrain(phased(sotu_store), epath.Path(workdir))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"phases\[0\]\.data\.batch_size: 16 -> 8\. Choose"):
        pretrain(phased(sotu_store, {"batch_size": 8}, {}), epath.Path(workdir))
    subprocess.run(["cp", "-r", workdir, tmp_path / "another"], check=True)
    shorter = phased(sotu_store, {}, {"steps": 2, "learning_rate": 5e-4})
    assert pretrain(shorter, epath.Path(tmp_path / "another"))
    assert read_metrics(tmp_path / "another")[-1]["step"] == 8
    with pytest.raises(
        UserError, match=r"phases\[1\]\.optimizer\.learning_rate: 0\.001 -> 0\.002\. Choose"
    ):
        pretrain(phased(sotu_store, {}, {"learning_rate": 2e-3}), epath.Path(uninterrupted))


def test_devices_must_share_the_batches_of_every_phase(sotu_store, tmp_path):
    """The mistake is in the second phase; nothing of the first is trained."""
    with pytest.raises(
        UserError, match=r"config\.phases\[1\]\.data\.batch_size=12 .* cannot share"
    ):
        pretrain(phased(sotu_store, {}, {"batch_size": 12}), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_trained_model_has_the_shapes_of_its_phase(uninterrupted):
    for step, length in ((8, 64), (11, 64)):
        trained = load_trained(epath.Path(uninterrupted), make_mesh(), step)
        assert (trained.step, trained.config.data.max_seq_length) == (step, length)


class Clock:
    """Every batch takes as long as told: seconds for the first n batches, then others."""

    def __init__(self, monkeypatch, *speeds: tuple[int, float]):
        self.now, self._calls = 1000.0, 0
        put_batch = rules.put_batch

        def put_and_wait(batch, mesh):
            self._calls += 1
            self.now += next(seconds for until, seconds in speeds if self._calls <= until)
            return put_batch(batch, mesh)

        monkeypatch.setattr(rules, "put_batch", put_and_wait)
        monkeypatch.setattr(budget, "monotonic", lambda: self.now)


def by_the_clock(store: Path, hours: float) -> PretrainConfig:
    """At most 1,000 steps, one tenth of them warmup; a line every 4."""
    fields = {"optimizer.warmup_steps": 100, "log_every": 4, "eval_every": 0, "steps": 1000}
    return recipe(store, **fields, checkpoint_every=5, budget_hours=hours)


def test_the_rate_ends_with_the_budget(sotu_store, tmp_path, monkeypatch):
    """36 seconds: at one a step 36 steps; from step 18 on two a step, so 27."""
    Clock(monkeypatch, (18, 1.0), (1000, 2.0))
    workdir = tmp_path / "run"
    assert pretrain(by_the_clock(sotu_store, 0.01), epath.Path(workdir))
    lines = read_metrics(workdir)
    assert (lines[-1]["split"], lines[-1]["step"]) == ("heldout", 27)
    rates = {line["step"]: line["learning_rate"] for line in lines if line["split"] == "train"}
    # Before the first line the estimate is 1,000 steps. Later lines look at the clock when it has
    # seen one batch more than they count: 36 * 4 / 5 steps at the first, and so on.
    assert rates[4] == pytest.approx(1e-3 * 3 / 100, rel=1e-4)
    assert rates[8] == pytest.approx(1e-3 * (1 - 7 / 29), rel=1e-4)
    assert rates[16] == pytest.approx(1e-3 * (1 - 15 / 34), rel=1e-4)
    assert rates[27] < 0.1 * 1e-3


def test_a_run_that_was_stopped_has_the_rest_of_its_budget(sotu_store, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with monkeypatch.context() as patch:
        Clock(patch, (1000, 1.5))
        assert pretrain(by_the_clock(sotu_store, 0.005), epath.Path(whole))
    with monkeypatch.context() as patch:
        clock = Clock(patch, (1000, 1.5))
        stop_at(patch, 7)
        assert not pretrain(by_the_clock(sotu_store, 0.005), epath.Path(parts))
        clock.now += 1e6  # the time between two starts does not count
        assert pretrain(by_the_clock(sotu_store, 0.005), epath.Path(parts))
        assert_same_run(whole, parts, 12)
        clock.now += 1e6
        lines = (parts / "metrics.jsonl").read_bytes()
        assert pretrain(by_the_clock(sotu_store, 0.005), epath.Path(parts))
        assert (parts / "metrics.jsonl").read_bytes() == lines


def test_a_run_ends_at_its_target(sotu_store, tmp_path, capsys):
    workdir = epath.Path(tmp_path / "run")
    fields = {"steps": 5, "eval_every": 3, "target_mlm_accuracy": 1e-9, "target_rows": 96}
    assert pretrain(recipe(sotu_store, **fields), workdir)
    message = r"masked LM accuracy 0\.\d{4} reached in 48 rows, 0\.50 times the 96 of the reference"
    printed = capsys.readouterr().out
    assert re.search(message, printed)
    assert read_metrics(workdir)[-1]["step"] == 3
    assert pretrain(recipe(sotu_store, **fields), workdir)
    assert "nothing to train" in capsys.readouterr().out
    higher = fields | {"target_mlm_accuracy": 0.99}
    assert pretrain(recipe(sotu_store, **higher), workdir)
    assert json.loads((workdir / "config.json").read_text())["target_mlm_accuracy"] == 0.99
    assert read_metrics(workdir)[-1]["step"] == 5

"""Branches: runs that begin with the state of another run."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from test_training import deterministic, recipe

from bert_jax.api.plan import planned_step
from bert_jax.api.pretrain import pretrain
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.saved import read_pretrain_config
from bert_jax.data.stores import open_store
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.interop.teachers import Teachers
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.pretraining.resuming import check_origin
from bert_jax.report.curves import draw_curves
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.checkpoints import Checkpoints, saved_steps

STABLE = {
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.gradient_accumulation": 1,
    "optimizer.ema_decay": 0.5,
    "steps": 8,
    "log_every": 2,
    "eval_every": 4,
    "checkpoint_every": 2,
    "keep_checkpoints": 4,
}


def stable(store, **changes):
    """Eight steps of one rate."""
    return recipe(store, **STABLE | changes)


@pytest.fixture(scope="module")
def run(sotu_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("branches") / "run"
    assert pretrain(stable(sotu_store), epath.Path(workdir))
    return workdir


def everything(workdir, config, step):
    """The whole state of a checkpoint."""
    abstract = planned_step(config, make_mesh()).abstract_state
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(abstract, step)[0])


def files(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_with_the_same_schedule_it_is_the_run_going_on(run, sotu_store, tmp_path):
    """State and metrics, bit for bit; the run is not touched."""
    before, branch = files(run), epath.Path(tmp_path / "branch")
    config = stable(sotu_store, branch_from=f"{run}@4", steps=4)
    assert pretrain(config, branch)
    assert files(run) == before
    states = [everything(workdir, config, 8) for workdir in (run, branch)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    first, *lines = deterministic(branch)
    assert first == {"step": 4, "split": "branch", "run": str(run)}
    assert lines.pop(0) == {**deterministic(run)[0], "step": 4}  # baselines
    assert lines == [line for line in deterministic(run) if line["step"] > 4]
    draw_curves({"run": read_metrics(run), "branch": read_metrics(branch)}, tmp_path / "both.png")
    draw_curves({"branch": read_metrics(branch)}, tmp_path / "tokens.png", "tokens")


def test_its_schedule_is_over_its_own_steps(run, sotu_store, tmp_path):
    """From the newest checkpoint, without warmup; it goes on when the run is gone."""
    shutil.copytree(run, tmp_path / "run")
    decay = {"optimizer.schedule": "one_minus_sqrt", "optimizer.learning_rate": 2e-3}
    fields = decay | {"branch_from": str(tmp_path / "run"), "steps": 5, "log_every": 1}
    config = stable(sotu_store, **fields, **{"optimizer.warmup_steps": 9})
    workdir = epath.Path(tmp_path / "branch")
    assert pretrain(config, workdir)
    shutil.rmtree(tmp_path / "run")
    lines = [line for line in read_metrics(workdir) if line["split"] == "train"]
    assert [line["step"] for line in lines] == [9, 10, 11, 12, 13]
    expected = [2e-3 * (1 - np.sqrt(t / 5)) for t in range(5)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected, rel=1e-5)
    assert pretrain(config, workdir)
    saved = read_pretrain_config(workdir / "config.json")
    assert saved.branch_from == f"{tmp_path / 'run'}@8"


@pytest.fixture(scope="module")
def branch(run, sotu_store, tmp_path_factory):
    """One step of twice as many rows after the sixth of the run, and the rows of its batch."""
    workdir = tmp_path_factory.mktemp("branch") / "branch"
    config = larger_batches(sotu_store, branch_from=f"{run}@6", steps=1)
    put_batch, seen = rules.put_batch, []

    def put_and_note(batch, mesh):
        seen.append(batch["input_ids"])
        return put_batch(batch, mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "put_batch", put_and_note)
        assert pretrain(config, epath.Path(workdir))
    return workdir, np.concatenate(seen)


def larger_batches(store, **changes):
    return stable(store, **{"data.batch_size": 32, "eval_every": 0} | changes)


def test_rows_go_on_in_batches_of_another_size(run, branch, sotu_store):
    """In a branch of a branch, too; a phase with rows of another length begins with the first."""
    workdir, rows = branch
    config, store = stable(sotu_store), open_store(sotu_store)
    stream = store.training_batches(config.data, seed=config.seed, host_rows=np.arange)
    expected = [stream.batch(step)["input_ids"] for step in (6, 7)]
    np.testing.assert_array_equal(rows, np.concatenate(expected))
    for origin, first_row in ((f"{run}@2", 2 * 16), (f"{workdir}@7", 8 * 16)):
        again = larger_batches(sotu_store, branch_from=origin, steps=1)
        teachers = Teachers(again, store.tokenizer)  # none
        assert check_origin(again, store, teachers) == first_row
        phase = {"steps": 1, "data": {"max_seq_length": 32}, "optimizer": {"warmup_steps": 1}}
        phased = build(PretrainConfig, again.to_dict() | {"phases": (phase,)})
        assert check_origin(phased, store, teachers) == 0
        assert phased.stages()[0].config.optimizer.warmup_steps == 1


def test_another_model_or_other_data_are_refused(run, sotu_store, tmp_path):
    def refused(message, **changes):
        workdir = epath.Path(tmp_path / "branch")
        with pytest.raises(UserError, match=message):
            pretrain(stable(sotu_store, **{"branch_from": f"{run}@4"} | changes), workdir)
        assert not (workdir / "config.json").exists()

    refused(
        r"branch_from=.*run@4 is a run of another model or other data: seed: 0 -> 1; "
        r"model\.hidden_size: 32 -> 64\. Give",
        **{"model.hidden_size": 64, "seed": 1},
    )
    refused(r"data\.max_seq_length: 64 -> 32", **{"data.max_seq_length": 32})
    refused(r"no checkpoint of step 5; there are \[2, 4, 6, 8\]", branch_from=f"{run}@5")
    refused(r"branch_from=.*@9: .*run has no checkpoint of that step", branch_from=f"{run}@9")
    refused(r"branch_from=.*: no run with a checkpoint there", branch_from=str(tmp_path / "no"))
    refused(r"branch_from=.*no@3: .*no holds no run", branch_from=str(tmp_path / "no@3"))
    refused(r"cannot be restored into this model: opt_state", **{"optimizer.name": "sgd"})
    with pytest.raises(UserError, match=r"budget_hours=1\.0 does not go with .*branch_from"):
        stable(sotu_store, branch_from=f"{run}@4", budget_hours=1.0)


def test_a_damaged_checkpoint_names_the_whole_ones(run, sotu_store, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for data in (tmp_path / "run" / "checkpoints" / "8" / "state").rglob("d/*"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    config = stable(sotu_store, branch_from=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"8: damaged: .*: set config\.branch_from=.*run@6$"):
        pretrain(config, epath.Path(tmp_path / "branch"))


def test_the_run_in_a_workdir_stays_that_of_its_origin(run, branch, sotu_store, tmp_path):
    """Of another step it would be another run; steps may be added."""
    workdir = epath.Path(tmp_path / "branch")
    shutil.copytree(branch[0], workdir)
    with pytest.raises(UserError, match=r"branch_from: '.*@6' -> '.*@4'"):
        pretrain(larger_batches(sotu_store, branch_from=f"{run}@4", steps=1), workdir)
    assert pretrain(larger_batches(sotu_store, branch_from=str(run), steps=2), workdir)
    with pytest.raises(UserError, match=r"config\.steps=1, but .*branch has 2 steps already"):
        pretrain(larger_batches(sotu_store, branch_from=str(run), steps=1), workdir)
    assert json.loads((workdir / "data.json").read_text())["first_row"] == 6 * 16
    assert saved_steps(workdir) == [7, 8]

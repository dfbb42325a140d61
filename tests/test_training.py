"""The step, the loop and the checkpoints, on a real store and through the real verb."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from configured import configured
from etils import epath
from tiny import make_batch, make_masking, make_model

from bert_jax.api.evaluate import load_trained
from bert_jax.api.pretrain import pretrain
from bert_jax.data.stores import open_store
from bert_jax.errors import TrainingDiverged, UserError
from bert_jax.evaluation.heldout import HeldOut
from bert_jax.fields import build
from bert_jax.objective.pretraining import PreTraining
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.checkpoints import Checkpoints, latest_step, saved_steps
from bert_jax.train.hooks import Evaluate
from bert_jax.train.optimizers import AdamW
from bert_jax.train.schedules import Schedule
from bert_jax.train.state import TrainState, init_state
from bert_jax.train.step import make_train_step
from bert_jax.train.trainer import Trainer

pytestmark = pytest.mark.core

TIMES = ("tokens_per_second", "sequences_per_second", "steps_per_second", "input_stall")


def recipe(store: Path, **changes):
    """Fourteen steps of a very small model, with dropout, packing and accumulation."""
    fields = {
        "steps": 14,
        "log_every": 4,
        "eval_every": 7,
        "eval_batches": 1,
        "checkpoint_every": 5,
        "keep_checkpoints": 2,
        "model.vocab_size": 1000,
        "model.hidden_size": 32,
        "model.intermediate_size": 64,
        "model.max_position_embeddings": 64,
        "numerics.compute_dtype": "float32",
        "data.store": str(store),
        "data.batch_size": 16,
        "data.max_seq_length": 64,
        "optimizer.learning_rate": 1e-3,
        "optimizer.gradient_accumulation": 2,
    } | changes
    return configured(**fields)


def parameters(workdir: Path, step: int):
    trained = load_trained(epath.Path(workdir), make_mesh(), step)
    return jax.device_get(trained.params)


def deterministic(workdir: Path) -> list[dict]:
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(workdir)
    ]


def assert_same_run(left: Path, right: Path, step: int):
    assert deterministic(left) == deterministic(right)
    jax.tree.map(np.testing.assert_array_equal, parameters(left, step), parameters(right, step))


@pytest.fixture(scope="module")
def uninterrupted(sotu_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert pretrain(recipe(sotu_store), epath.Path(workdir))
    return workdir


def test_workdir_holds_everything(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert {"config.json", "data.json", "metrics.jsonl", "checkpoints", "tensorboard"} <= names
    assert {"vocab.txt", "curves.png"} <= names
    assert (uninterrupted / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((uninterrupted / "tensorboard").glob("events.*"))
    assert sorted(p.name for p in (uninterrupted / "checkpoints").iterdir()) == ["10", "14"]


def test_metrics_are_one_line_an_interval(uninterrupted):
    lines = read_metrics(uninterrupted)
    where = [(line["split"], line["step"]) for line in lines]
    assert where == [
        ("baseline", 0),
        ("train", 4),
        ("heldout", 7),
        ("train", 8),
        ("train", 12),
        ("train", 14),
        ("heldout", 14),
    ]
    for line in lines:
        if line["split"] != "baseline":
            assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"])
            assert line["mlm_perplexity"] == pytest.approx(np.exp(line["mlm_loss"]))
    assert lines[5]["loss"] < lines[1]["loss"]


def test_stopped_by_sigterm_and_resumed_is_the_same_run(
    uninterrupted, sotu_store, tmp_path, monkeypatch
):
    """The signal comes between two lines of metrics and between two checkpoints."""
    workdir = epath.Path(tmp_path / "run")
    put_batch, calls = rules.put_batch, []

    def put_and_stop(batch, mesh):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(batch, mesh)

    monkeypatch.setattr(rules, "put_batch", put_and_stop)
    assert not pretrain(recipe(sotu_store), workdir)
    monkeypatch.undo()
    stopped_at = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert stopped_at % 4, "the test is to stop between two lines"
    assert stopped_at % 5, "and between two checkpoints"
    assert pretrain(recipe(sotu_store), workdir)
    assert_same_run(uninterrupted, workdir, 14)


def test_killed_and_resumed_is_the_same_run(uninterrupted, sotu_store, tmp_path):
    """A real process dies by SIGKILL with steps done since its last checkpoint."""
    workdir = tmp_path / "run"
    config = tmp_path / "config.json"
    config.write_text(json.dumps(recipe(sotu_store).to_dict()))
    script = f"""
import os, signal
from etils import epath
from bert_jax.api import pretrain
from bert_jax.config.saved import read_pretrain_config
from bert_jax.train import hooks
def die_at_thirteen(step, *rest):
    if step == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return line(step, *rest)
line, hooks.progress_line = hooks.progress_line, die_at_thirteen
pretrain.pretrain(read_pretrain_config(epath.Path({str(config)!r})), epath.Path({str(workdir)!r}))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    died = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert read_metrics(workdir)[-1]["step"] == 12
    assert pretrain(recipe(sotu_store), epath.Path(workdir))
    assert_same_run(uninterrupted, workdir, 14)


def test_of_a_finished_run_only_the_curves_are_drawn(uninterrupted, sotu_store):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    curves = (uninterrupted / "curves.png").read_bytes()
    (uninterrupted / "curves.png").unlink()  # as if the run had been killed while it drew them
    assert pretrain(recipe(sotu_store), epath.Path(uninterrupted))
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
    assert (uninterrupted / "curves.png").read_bytes() == curves


def test_a_run_can_be_prolonged_on_another_mesh(uninterrupted, sotu_store, tmp_path, capsys):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", uninterrupted, workdir], check=True)
    longer = recipe(sotu_store, steps=16, **{"mesh.data": 4, "mesh.fsdp": 2})
    assert pretrain(longer, epath.Path(workdir))
    printed = capsys.readouterr().out
    assert "changed since the last start: steps: 14 -> 16" in printed
    assert "resuming at step 14" in printed
    assert read_metrics(workdir)[-1]["step"] == 16


def test_fewer_steps_than_are_done_are_refused(uninterrupted, sotu_store):
    config = (uninterrupted / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"config\.steps=13, but .* has 14 steps already"):
        pretrain(recipe(sotu_store, steps=13), epath.Path(uninterrupted))
    assert (uninterrupted / "config.json").read_bytes() == config


def test_a_start_that_fails_changes_nothing(uninterrupted, sotu_store):
    """The sizes of the mesh are checked against the devices, after the workdir."""
    config = (uninterrupted / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"config\.mesh"):
        pretrain(recipe(sotu_store, steps=20, **{"mesh.data": 3}), epath.Path(uninterrupted))
    assert (uninterrupted / "config.json").read_bytes() == config


def test_evaluation_fits_any_mesh(uninterrupted, sotu_store):
    """Empty rows that fill up a batch count nowhere."""
    mesh = make_mesh(data=8)
    trained = load_trained(epath.Path(uninterrupted), mesh)
    store = open_store(sotu_store)
    scores = []
    for batch_size in (16, 20):
        data = dataclasses.replace(trained.config.data, batch_size=batch_size)
        config = dataclasses.replace(trained.config, data=data, eval_batches=0)
        scores.append(HeldOut(config, store, trained.model, mesh)(trained.params))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_damaged_checkpoint_is_left_for_an_older_one(uninterrupted, sotu_store, tmp_path):
    """The run goes on to the same end; the same command again goes on from the newest."""
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", uninterrupted, workdir], check=True)
    for data in (workdir / "checkpoints" / "14" / "state").rglob("d/*"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    message = r"checkpoints/14: damaged: .* of steps \[10\]: go back with --config\.resume_from=10"
    with pytest.raises(UserError, match=message):
        pretrain(recipe(sotu_store, steps=15), epath.Path(workdir))
    with pytest.raises(UserError, match=r"resume_from=9: .* there are \[10, 14\], and 0 begins"):
        pretrain(recipe(sotu_store, resume_from=9), epath.Path(workdir))
    back = recipe(sotu_store, resume_from=10)
    assert pretrain(back, epath.Path(workdir))
    assert_same_run(uninterrupted, workdir, 14)
    assert pretrain(back, epath.Path(workdir))
    assert saved_steps(workdir) == [10, 14]


def test_divergence_is_reported_and_not_saved(sotu_store, tmp_path):
    """The weights are finite after the first step, but useless."""
    workdir = epath.Path(tmp_path / "run")
    changes = {"optimizer.warmup_steps": 0, "checkpoint_every": 1, "steps": 2}
    for rate in (1e30, 1e9):
        config = recipe(sotu_store, **changes, **{"optimizer.learning_rate": rate})
        message = (
            r"^step 1 changes .* Lower config\.optimizer\.learning_rate .*resume_from=0: .* 0$"
        )
        with pytest.raises(TrainingDiverged, match=message):
            pretrain(config, workdir)
        assert latest_step(workdir) is None
    assert pretrain(recipe(sotu_store, **changes, resume_from=0), workdir)
    assert saved_steps(workdir) == [1, 2]


def test_the_way_back_leads_past_the_weights_that_diverged(tmp_path):
    """The gradient of step 7 is that of the weights after step 6."""
    state = TrainState(np.int32(6), {"w": np.ones(2, np.float32)}, ())
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (4, 6):
            checkpoints.save(step, state, {})
        norms = {"update_norm": 1e-3, "param_norm": 1.0}
        for metrics, back in ((norms | {"grad_norm": np.inf}, 4), ({"update_norm": 101.0}, 6)):
            trainer = Trainer(state, checkpoints, {})
            trainer.done = 7
            trainer._pending = [norms | {"grad_norm": 1.0, "learning_rate": 1.0} | metrics]
            with pytest.raises(
                TrainingDiverged, match=rf"--config\.resume_from={back}: .* {back}$"
            ):
                trainer.collect()


def small_step(gradient_accumulation=1):
    """A jitted step of the test model, its initial state and a batch of 16 rows."""
    model = make_model()
    objective = PreTraining(model.graphdef, make_masking(slots=12), seed=0)
    optimizer = AdamW(bias_correction=True).transformation(model.axes)
    step = make_train_step(
        objective,
        optimizer,
        Schedule.kind("linear", "schedule")().rate(1e-3, warmup_steps=2, steps=20),
        gradient_accumulation=gradient_accumulation,
    )
    state = jax.jit(functools.partial(init_state, model.init, optimizer))(jax.random.key(0))
    batch = make_batch([[9 + n, 15, 12 - n // 2] for n in range(16)])
    return jax.jit(step), state, batch


def test_accumulation_equals_the_big_batch():
    """Microbatches hold different numbers of masked tokens, so means of means would differ."""
    results = []
    for microbatches in (1, 4):
        step, state, batch = small_step(gradient_accumulation=microbatches)
        results.append(step(state, batch, None))
    (big, big_metrics), (small, small_metrics) = results
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        (big.params, big_metrics),
        (small.params, small_metrics),
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [0.0, 0.5, 0.8, 0.5, 0.0]),
        ("poly", [0.0, 0.5, 0.64, 0.25, 0.0]),
        ("cosine", [0.0, 0.5, 0.9045, 0.5, 0.0]),
        ("rsqrt", [0.0, 0.5, 1.0, 0.6325, 0.4472]),
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("one_minus_sqrt", [0.0, 0.5, 0.5528, 0.2929, 0.0]),
        ("linear to a floor", [0.0, 0.5, 0.84, 0.6, 0.2]),
        ("cosine to a floor", [0.0, 0.5, 0.9236, 0.6, 0.2]),
        ("one_minus_sqrt to a floor", [0.0, 0.5, 0.6422, 0.4343, 0.2]),
        ("cooldown", [0.0, 0.5, 1.0, 1.0, 0.0]),
    ],
)
def test_schedules(kind, expected):
    kind, _, to_floor = kind.partition(" ")
    knobs = ({"power": 2.0} if kind == "poly" else {}) | ({"floor": 0.2} if to_floor else {})
    schedule = build(Schedule, {"name": kind, **knobs}).rate(2.0, warmup_steps=20, steps=100)
    rates = [float(schedule(step)) / 2.0 for step in (0, 10, 20, 50, 100)]
    assert rates == pytest.approx(expected, abs=1e-4)


def test_a_cooldown_begins_where_the_schedule_before_it_ends():
    """As in GPT-BERT: half a cosine to a tenth, then a line to 0."""
    fields = {"name": "cooldown", "share": 0.2, "before": {"name": "cosine", "floor": 0.1}}
    schedule = build(Schedule, fields).rate(2.0, warmup_steps=10, steps=100)
    rates = [float(schedule(step)) / 2.0 for step in (0, 5, 40, 80, 90, 95, 100)]
    assert rates == pytest.approx([0.0, 0.5, 0.55, 0.1, 0.05, 0.025, 0.0], abs=1e-6)


def test_weight_decay_skips_biases_and_norms_only():
    from bert_jax.train.optimizers import decay_mask

    _, init, _ = make_model()
    mask = decay_mask(jax.eval_shape(init, jax.random.key(0)))
    spared = {
        "/".join(key.key for key in path)
        for path, decays in jax.tree_util.tree_flatten_with_path(mask)[0]
        if not decays
    }
    assert all(path.endswith(("bias", "norm/scale")) for path in spared)
    assert "masked_lm/bias" in spared
    assert mask["bert"]["embeddings"]["word"]["embedding"]
    assert mask["bert"]["encoder"]["layers"]["attention"]["query"]["kernel"]


def test_the_first_evaluation_says_that_it_compiles(capsys):
    writer = SimpleNamespace(write=lambda *line: None)
    trainer = SimpleNamespace(
        collect=lambda: None,
        state=SimpleNamespace(params=None),
        done=3,
        stopwatch=SimpleNamespace(skip=lambda seconds: None),
    )
    evaluate = Evaluate(lambda params: {"loss": 1.0}, writer)
    evaluate(trainer)
    evaluate(trainer)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "compiling the evaluation ..."
    assert [line.startswith("step 3 held-out") for line in lines[1:]] == [True, True]

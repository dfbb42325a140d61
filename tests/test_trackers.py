"""Services that get the metrics of a run: one written here, and the real ones without a network."""

import json
import sys
import types
from typing import ClassVar

import pytest

from bert_jax.errors import UserError
from bert_jax.train.metrics import MetricsWriter
from bert_jax.train.trackers import TRACKERS, check_trackers


class Recorded:
    """A tracker that keeps what it is given."""

    all: ClassVar[list] = []

    def __init__(self, name, config, workdir, run):
        self.run = run or f"run {len(self.all)}"
        self.calls = [(name, dict(config), workdir, run)]
        self.all.append(self)

    def log(self, step, metrics):
        self.calls.append((step, dict(metrics)))
        if "train/bad" in metrics:
            raise ConnectionError("no network\nat all")

    def close(self):
        self.calls.append("closed")


@pytest.fixture
def tracker(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Recorded=Recorded))
    monkeypatch.setattr(Recorded, "all", [])
    return "mine:Recorded"


def write(workdir, first_step, lines, trackers):
    config = {"steps": 9}
    with MetricsWriter(workdir, first_step, trackers=trackers, config=config) as writer:
        for step, metrics in lines:
            writer.write(step, "train", metrics)


def test_a_tracker_gets_all_metrics_and_its_run_again(tmp_path, tracker):
    check_trackers([tracker])
    write(tmp_path, 0, [(2, {"loss": 2.0, "x": float("nan")}), (4, {"loss": 1.0})], [tracker])
    write(tmp_path, 2, [(4, {"loss": 1.5})], [tracker])
    first, second = Recorded.all
    assert first.calls == [
        (tmp_path.name, {"steps": 9}, tmp_path, None),
        *((2, {"train/loss": 2.0}), (4, {"train/loss": 1.0}), "closed"),
    ]
    assert second.calls[0][-1] == "run 0"
    assert second.calls[1] == (4, {"train/loss": 1.5})
    assert json.loads((tmp_path / "trackers.json").read_text()) == {tracker: "run 0"}


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(tmp_path, tracker, caplog):
    write(tmp_path, 0, [(step, {"bad": 1.0}) for step in (1, 2, 3)], [tracker])
    assert len(Recorded.all[0].calls) == 2
    assert caplog.messages == ["mine:Recorded gets no metrics from now on: no network"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_wrong_trackers_are_refused(monkeypatch):
    with pytest.raises(UserError, match="'tensorbord' is none of wandb, mlflow, nor MODULE:CLASS"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="mlflow is not installed: pip install mlflow"):
        check_trackers(["mlflow"])
    with pytest.raises(UserError, match="no_such_module"):
        check_trackers(["no_such_module:Tracker"])


@pytest.mark.parametrize("name", TRACKERS)
def test_the_real_one(name, tmp_path, monkeypatch, caplog):
    """Twice, as where a run resumes."""
    library = pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the small package has no databases
    write(tmp_path, 0, [(2, {"loss": 2.0}), (4, {"loss": 1.0})], [name])
    write(tmp_path, 2, [(4, {"loss": 1.5})], [name])
    assert caplog.messages == []
    run = json.loads((tmp_path / "trackers.json").read_text())[name]
    if name == "mlflow":
        history = library.MlflowClient().get_metric_history(run, "train/loss")
        assert sorted((each.step, each.value) for each in history) == [(2, 2.0), (4, 1.0), (4, 1.5)]
    else:
        assert len([*(tmp_path / "wandb").glob(f"offline-run-*-{run}")]) == 2

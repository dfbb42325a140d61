"""Services that get the metrics of a run, too: W&B, MLflow, or one of your own."""

import contextlib
import hashlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from bert_jax.errors import UserError
from bert_jax.fields import import_object
from bert_jax.storage import is_remote, read_json, write_json

_log = logging.getLogger(__name__)

RUNS = "trackers.json"  # in a workdir: tracker -> its id of the run


class Tracker(Protocol):
    """What a tracker does. It is made with the name of the run, its config, workdir, and run id.

    The id is None at the first start, and `run` of the tracker at that start later on.
    """

    run: str

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes metrics, named "train/mlm_loss" and so on; steps may come again after a resume."""

    def close(self) -> None:
        """Ends the run, or this part of it."""


class WandB:
    """Weights & Biases. WANDB_PROJECT, WANDB_MODE and its other variables apply."""

    def __init__(
        self, name: str, config: Mapping[str, Any], workdir: epath.Path, run: str | None
    ) -> None:
        import wandb

        self.run = run or hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
        self._run = wandb.init(
            name=name,
            config=dict(config),
            id=self.run,
            resume="allow",
            dir=None if is_remote(workdir) else str(workdir),
            settings=wandb.Settings(silent=True),
        )
        # Its own step may not go back, as ours does where a killed run resumes.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow. MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and its other variables apply."""

    def __init__(
        self, name: str, config: Mapping[str, Any], workdir: epath.Path, run: str | None
    ) -> None:
        import mlflow

        self._mlflow = mlflow
        started = mlflow.start_run(run_id=run) if run else mlflow.start_run(run_name=name)
        self.run = started.info.run_id
        if not run:
            mlflow.log_dict(dict(config), "config.json")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS = {"wandb": WandB, "mlflow": MLflow}


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError if a tracker is unknown, or its library is not installed."""
    for name in names:
        if name in TRACKERS:
            if importlib.util.find_spec(name) is None:
                raise UserError(f"config.trackers: {name} is not installed: pip install {name}")
        elif ":" in name:
            import_object(name, "config.trackers")
        else:
            known = ", ".join(TRACKERS)
            raise UserError(f"config.trackers: {name!r} is none of {known}, nor MODULE:CLASS")


class Trackers:
    """All trackers of a run. One that fails is told once and left out; the run goes on."""

    def __init__(
        self, names: Sequence[str], workdir: epath.Path, config: Mapping[str, Any], *, anew: bool
    ) -> None:
        """Starts or resumes the run of each; `anew` starts new ones."""
        path = workdir / RUNS
        runs = read_json(path) if path.exists() and not anew else {}
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            kind: Any = TRACKERS.get(name) or import_object(name, "config.trackers")
            with self._told(name):
                self._trackers[name] = kind(workdir.name, config, workdir, runs.get(name))
        if self._trackers:
            write_json(path, runs | {name: each.run for name, each in self._trackers.items()})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Passes metrics on."""
        for name, tracker in [*self._trackers.items()]:
            with self._told(name):
                tracker.log(step, metrics)

    def close(self) -> None:
        """Closes all."""
        for name, tracker in [*self._trackers.items()]:
            with self._told(name):
                tracker.close()

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: the service may be away
            self._trackers.pop(name, None)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            _log.warning("%s gets no metrics from now on: %s", name, reason)

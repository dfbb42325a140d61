"""Profiling of a running process, on request."""

import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax
from etils import epath

from bert_jax.parallel import hosts
from bert_jax.storage import whole_file

PROFILED_STEPS = 5


class Profiler:
    """Traces the next `PROFILED_STEPS` steps when the process gets SIGUSR1.

    Each process traces its own devices and writes `plugins/profile/latest/process_I.*` below the
    directory. TensorBoard, XProf and (the .json.gz) ui.perfetto.dev open these files. A new trace
    replaces the last one.
    """

    def __init__(self, directory: epath.Path):
        self._directory = directory / "plugins" / "profile" / "latest"
        self._requested = False
        self._last_step: int | None = None  # of the trace that is being taken
        self._local: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Profiler":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._last_step is not None:
            self._stop()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._previous)

    def after_step(self, step: int, metrics: Any) -> None:
        """Starts or stops a trace if it is due.

        Args:
          step: steps done so far.
          metrics: metrics of the last step, which may still run. A trace waits for them when it
            starts and stops, so that it holds whole steps.
        """
        if self._last_step is None and self._requested:
            self._requested = False
            jax.block_until_ready(metrics)
            self._local = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._local.name)
            self._last_step = step + PROFILED_STEPS
        elif step == self._last_step:
            jax.block_until_ready(metrics)
            self._stop()

    def _request(self, number: int, frame: Any) -> None:
        self._requested = True

    def _stop(self) -> None:
        assert self._local is not None  # a trace is being taken
        jax.profiler.stop_trace()
        self._last_step = None
        self._directory.mkdir(parents=True, exist_ok=True)
        for file in Path(self._local.name).rglob("*.*"):  # HOST.xplane.pb, HOST.trace.json.gz
            if file.is_file():
                kind = file.name.partition(".")[2]
                name = f"process_{jax.process_index()}.{kind}"
                with whole_file(self._directory / name) as unfinished:
                    unfinished.write_bytes(file.read_bytes())
        self._local.cleanup()
        hosts.print_here(f"profile of {PROFILED_STEPS} steps in {self._directory}")

"""Training for a given time: estimates how many steps the time allows."""

import math
from collections.abc import Mapping
from time import monotonic

import numpy as np
from jax.experimental import multihost_utils


class Budget:
    """Estimates the last step of a run from the pace so far.

    The clock is read only when metrics are logged. In between the estimate is fixed, so that all
    processes and a resumed run see the same.
    """

    def __init__(self, steps: int, hours: float, progress: Mapping[str, float]):
        """Starts the clock.

        Args:
          steps: the maximum, and the estimate before the first reading.
          hours: time for the whole run; 0 for no limit.
          progress: `progress` of the checkpoint to resume from; empty for a new run.
        """
        self._steps = steps
        self._seconds = hours * 3600 or math.inf
        self._seconds_per_step = progress.get("seconds_per_step", 0.0)
        self._started = monotonic() - progress.get("seconds", 0.0)

    @property
    def steps(self) -> int:
        """Estimated steps of the whole run."""
        if not self._seconds_per_step:
            return self._steps
        return min(self._steps, math.ceil(self._seconds / self._seconds_per_step))

    def update(self, done: int) -> None:
        """Reads the clock of process 0 after `done` steps of the run; all processes call it."""
        if self._seconds < math.inf:
            seconds = multihost_utils.broadcast_one_to_all(np.float32(self._spent()))
            self._seconds_per_step = float(seconds) / done

    def progress(self) -> dict[str, float]:
        """Numbers to keep in a checkpoint; none if time is not limited."""
        if self._seconds == math.inf:
            return {}
        return {"seconds": self._spent(), "seconds_per_step": self._seconds_per_step}

    def _spent(self) -> float:
        return monotonic() - self._started

"""Curves of a run, after and while it trains."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from etils import epath

from bert_jax.background import in_background
from bert_jax.report.curves import draw_curves
from bert_jax.report.metrics_file import read_metrics


def draw_run(workdir: epath.PathLike) -> epath.Path | None:
    """Draws the curves of a run into its curves.png; None if there are no metrics yet."""
    workdir = epath.Path(workdir)
    lines = read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []
    if all(line["split"] == "baseline" for line in lines):
        return None
    picture = workdir / "curves.png"
    draw_curves({workdir.name: lines}, picture)
    return picture


@contextlib.contextmanager
def live_curves(
    workdir: epath.PathLike, show: Callable[[bytes], object], seconds: float = 5.0
) -> Iterator[None]:
    """Draws the curves of a run while the block trains it, and once more at the end.

    Args:
      workdir: workdir of the run; the block may create it. The picture is its curves.png.
      show: called with the PNG, from another thread.
      seconds: time between pictures.
    """

    def draw() -> None:
        if picture := draw_run(workdir):
            show(picture.read_bytes())

    def draw_until_over(over: threading.Event) -> None:
        while not over.wait(seconds):
            draw()

    try:
        with in_background(draw_until_over):
            yield
    finally:
        draw()

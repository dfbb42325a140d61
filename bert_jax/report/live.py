"""Curves of a run while it trains."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from etils import epath

from bert_jax.report.curves import draw_curves
from bert_jax.report.metrics_file import read_metrics


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
    workdir, picture = epath.Path(workdir), epath.Path(workdir) / "curves.png"

    def draw() -> None:
        lines = read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []
        if any(line["split"] != "baseline" for line in lines):
            draw_curves({workdir.name: lines}, picture)
            show(picture.read_bytes())

    def draw_until_over() -> None:
        while not over.wait(seconds):
            draw()

    over = threading.Event()
    thread = threading.Thread(target=draw_until_over, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        draw()

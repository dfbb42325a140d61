"""Draws the curves of training runs."""

import argparse
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from bert_jax.errors import UserError
from bert_jax.report.curves import draw_curves
from bert_jax.train.metrics import read_metrics


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="bert-jax plot",
        description="Draws losses and accuracies of one or more training runs over their steps, "
        "with what a model that ignores context would reach as dashed lines.",
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of a training run")
    parser.add_argument(
        "--output", metavar="FILE.png", help="default: curves.png in the first workdir"
    )
    arguments = parser.parse_args(argv)
    workdirs = [epath.Path(workdir) for workdir in arguments.workdirs]
    output = arguments.output or workdirs[0] / "curves.png"
    runs = {str(workdir): read_metrics(workdir) for workdir in workdirs}
    for workdir, lines in runs.items():
        if not lines:
            raise UserError(f"{workdir}/metrics.jsonl: no metrics yet; wait for the first ones")
    draw_curves(runs, output)
    print(output)


@contextlib.contextmanager
def live_curves(
    workdir: epath.PathLike, show: Callable[[bytes], object], seconds: float = 5.0
) -> Iterator[None]:
    """Draws the curves of a run while the block trains it, and once more when it has.

    Args:
      workdir: of the run; may be made in the block. The picture is its curves.png.
      show: called with the PNG, from another thread.
      seconds: between pictures.
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

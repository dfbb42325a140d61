"""Describes training runs in one page."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.overrides import flatten
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.saved import is_finetuning, read_finetune_config, read_pretrain_config
from bert_jax.data.stores import open_store
from bert_jax.errors import UserError
from bert_jax.inference.trained import load
from bert_jax.json_values import dump_json
from bert_jax.report.curves import draw_curves
from bert_jax.report.metrics_file import read_metrics
from bert_jax.report.page import Guesses, Run, write_page
from bert_jax.storage import read_json
from bert_jax.train.checkpoints import saved_steps
from bert_jax.train.starts import read_starts

TEXTS = (
    "The president of the United [MASK].",
    "She went to the [MASK] to buy some bread.",
    "[MASK] is the capital of France.",
)


def write_report(
    workdirs: Sequence[epath.PathLike], output: epath.PathLike, texts: Sequence[str] = TEXTS
) -> None:
    """Writes a page about training runs: scores, curves, config, data, masks, environment.

    Args:
      workdirs: directories of runs of pretraining or fine-tuning; several are side by side.
      output: path of the HTML file, which holds all its pictures.
      texts: texts with a [MASK], which every checkpoint of a masked LM fills; () for none.

    Raises:
      UserError: a directory holds no run, or no metrics yet.
    """
    folders = [run for workdir in workdirs for run in _runs(epath.Path(workdir))]
    runs = [read_run(folder, texts) for folder in folders]
    with tempfile.TemporaryDirectory() as folder:
        picture = epath.Path(folder) / "curves.png"
        draw_curves({run.name: run.lines for run in runs}, picture)
        write_page(output, runs, picture.read_bytes(), texts)


def _runs(workdir: epath.Path) -> list[epath.Path]:
    """A run, or those of its seeds."""
    seeds = sorted(workdir.glob("seed*/metrics.jsonl"))
    return [path.parent for path in seeds] or [workdir]


def read_run(workdir: epath.Path, texts: Sequence[str]) -> Run:
    """What the workdir of a run says about it; see `write_report`."""
    lines = read_metrics(workdir)
    if not lines:
        raise UserError(f"{workdir}/metrics.jsonl: no metrics yet; wait for the first ones")
    path = workdir / "config.json"
    config: PretrainConfig | FinetuneConfig
    if is_finetuning(read_json(path)):
        config, data = read_finetune_config(path), []
    else:
        config = read_pretrain_config(path)
        data = _about(config.stores, read_json(workdir / "data.json"))
    fields, defaults = flatten(config.to_dict()), flatten(type(config)().to_dict())
    results = workdir / "results.json"
    return Run(
        str(workdir),
        lines,
        fields={name: dump_json(value) for name, value in fields.items()},
        changed=[name for name in fields if fields[name] != defaults.get(name)],
        data=data,
        starts=read_starts(workdir),
        results=read_json(results) if results.exists() else {},
        pictures=dict(_pictures(workdir)),
        guesses=list(_guesses(workdir, texts)),
    )


def _about(stores: Sequence[str], data: Mapping[str, Any]) -> list[str]:
    """What stores say of themselves, unless they are elsewhere by now, and what identifies them."""
    lines = []
    for store in stores:
        with contextlib.suppress(UserError):
            lines.append(f"{store}: {open_store(store).summary}")
    return lines + [f"{name.replace('_', ' ')}: {value}" for name, value in data.items()]


def _pictures(workdir: epath.Path) -> Iterator[tuple[str, bytes]]:
    for name, title in (("confusion", "Confusion matrix"), ("calibration", "Calibration")):
        for path in sorted(workdir.glob(f"*_{name}.png")):
            yield f"{title}, {path.name.removesuffix(f'_{name}.png')}", path.read_bytes()


def _guesses(workdir: epath.Path, texts: Sequence[str]) -> Iterator[Guesses]:
    for step in saved_steps(workdir) if texts else []:
        bert = load(workdir, step)
        if "masked_lm" not in bert.params:
            return
        filled: list[Any] = bert.fill_mask(texts, top_k=3)
        yield Guesses(
            step,
            [
                "; ".join(
                    ", ".join(f"{guess.token} {guess.probability:.0%}" for guess in guesses)
                    for guesses in masks
                )
                for masks in filled
            ],
        )

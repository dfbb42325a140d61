"""Runs as one self-contained HTML page."""

import base64
import html
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from bert_jax.report.curves import BASELINES, PRETRAINING
from bert_jax.report.templates import fill
from bert_jax.report.units import compact, duration, shown

Cells = Sequence[str]


@dataclass(frozen=True)
class Guesses:
    """What a checkpoint guesses for the masks of a text.

    Attributes:
      step: step of the checkpoint.
      words: for each text, its guesses, as text.
    """

    step: int
    words: Sequence[str]


@dataclass(frozen=True)
class Run:
    """What a page says about a run.

    Attributes:
      name: path or name.
      lines: its metrics, see `bert_jax.report.metrics_file`.
      fields: field -> value of its config, as text.
      changed: those of `fields` that are not the default.
      data: lines about its data.
      starts: see `bert_jax.train.starts`.
      results: `results.json` of a fine-tuning run.
      pictures: title -> PNG, beside the curves.
      guesses: what its checkpoints guess for masks.
    """

    name: str
    lines: Sequence[Mapping[str, Any]]
    fields: Mapping[str, str]
    changed: Sequence[str]
    data: Sequence[str] = ()
    starts: Sequence[Mapping[str, Any]] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    guesses: Sequence[Guesses] = ()


def write_page(path: epath.PathLike, runs: Sequence[Run], curves: bytes, texts: Cells) -> None:
    """Writes the page of one or more runs.

    Args:
      path: path of the HTML file.
      runs: what it shows; several are side by side.
      curves: PNG of the curves of all.
      texts: texts with masks that `Run.guesses` are about.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    fill(path, title, "\n".join(_body(runs, curves, texts)))


def _body(runs: Sequence[Run], curves: bytes, texts: Cells) -> Iterator[str]:
    names = [run.name for run in runs] if len(runs) > 1 else [""]
    yield table(["", *names], _summary(runs))
    yield "<h2>Scores on held-out data</h2>"
    yield (
        '<p class="quiet">The last evaluation of each run; in brackets, the baseline: the score '
        "of a guess that ignores the context.</p>"
    )
    yield table(["", *names], _scores(runs, "heldout"))
    yield "<h2>Curves</h2>"
    yield picture(curves, "Losses and accuracies of the runs over steps")
    if any(line["split"] == "suites" for run in runs for line in run.lines):
        yield "<h2>Suites, without fine-tuning</h2>"
        yield table(["", *names], _scores(runs, "suites"))
    for run in runs:
        if run.results:
            yield f"<h2>{_of('Results', run, runs)}</h2>"
            yield from _results(run.results)
        for heading, png in run.pictures.items():
            yield f"<h3>{_of(heading, run, runs)}</h3>{picture(png, heading)}"
    for run in runs:
        if run.guesses:
            yield f"<h2>{_of('Masks filled', run, runs)}</h2>"
            steps = [f"step {each.step:,}" for each in run.guesses]
            rows = [[text, *words] for text, *words in zip(texts, *(g.words for g in run.guesses))]
            yield table(["text", *steps], rows)
    yield "<h2>Config</h2>"
    yield from _configs(runs)
    if data := dict.fromkeys(line for run in runs for line in run.data):
        yield "<h2>Data</h2>"
        yield "".join(f"<p>{html.escape(line)}</p>" for line in data)
    for run in runs:
        if run.starts:
            yield f"<h2>{_of('Environment', run, runs)}</h2>"
            yield from _starts(run.starts)


def _of(heading: str, run: Run, runs: Sequence[Run]) -> str:
    return html.escape(heading if len(runs) == 1 else f"{heading}: {run.name}")


def _summary(runs: Sequence[Run]) -> Iterator[Cells]:
    yield ["steps", *(f"{run.lines[-1]['step']:,}" for run in runs)]
    yield ["tokens", *(compact(training_tokens(run)) for run in runs)]
    yield ["time of training", *(duration(training_seconds(run)) for run in runs)]
    for name, title in (
        ("tokens_per_second", "tokens a second, median"),
        ("mfu", "share of the peak FLOP/s, median"),
        ("input_stall", "waiting for data, median"),
        ("padding", "padding, median"),
    ):
        values = [[line[name] for line in _train(run) if name in line] for run in runs]
        if any(values):
            write = compact if name == "tokens_per_second" else "{:.1%}".format
            yield [title, *(write(statistics.median(found)) if found else "" for found in values)]


def _train(run: Run) -> list[Mapping[str, Any]]:
    return [line for line in run.lines if line["split"] == "train"]


def _stretches(run: Run) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """The seconds and the line of each interval of training, without compiling and saving."""
    done = 0
    for line in _train(run):
        if rate := line.get("steps_per_second"):
            yield (line["step"] - done) / rate, line
        done = line["step"]


def training_seconds(run: Run) -> float:
    """Time of the steps, without compiling, evaluating and saving."""
    return sum(seconds for seconds, _ in _stretches(run))


def training_tokens(run: Run) -> float:
    """Tokens trained on, without padding."""
    return sum(seconds * line.get("tokens_per_second", 0.0) for seconds, line in _stretches(run))


def _scores(runs: Sequence[Run], split: str) -> Iterator[Cells]:
    found = [last_scores(run, split) for run in runs]
    baselines = [last_scores(run, "baseline") for run in runs]
    for name in dict.fromkeys(name for scores in found for name in scores):
        guess = f"{BASELINES[name]} " if name in BASELINES else ""
        cells = []
        for scores, baseline in zip(found, baselines):
            cell = shown(name, scores[name]) if name in scores else ""
            if name in baseline:
                cell += f" ({guess}{shown(name, baseline[name])})"
            cells.append(cell)
        yield [PRETRAINING.get(name, name).removesuffix(" (%)"), *cells]


def last_scores(run: Run, split: str) -> dict[str, float]:
    """The metrics of the last line of a split; none without one."""
    lines = [line for line in run.lines if line["split"] == split]
    return {k: v for k, v in lines[-1].items() if k not in ("step", "split")} if lines else {}


def _results(results: Mapping[str, Any]) -> Iterator[str]:
    for split in ("dev", "test"):
        scored = results.get(split, {})
        if "metrics" not in scored:
            continue
        guessing = scored.get("baseline", {})
        yield f"<h3>{split}, step {results['step']:,}</h3>"
        rows = [
            [name, shown(name, value), shown(name, guessing[name]) if name in guessing else ""]
            for name, value in scored["metrics"].items()
        ]
        yield table(["", "score", "guessing"], rows)
        if classes := scored.get("classes"):
            names = [name for name in classes[0] if name not in ("label", "support")]
            rows = [
                [str(each["label"]), *(shown(n, each[n]) for n in names), f"{each['support']:,}"]
                for each in classes
            ]
            yield table(["class", *names, "examples"], rows)


def _configs(runs: Sequence[Run]) -> Iterator[str]:
    if len(runs) > 1:
        every = dict.fromkeys(name for run in runs for name in run.fields)
        rows = [[name, *(run.fields.get(name, "") for run in runs)] for name in every]
        rows = [row for row in rows if len({*row[1:]}) > 1]
        yield '<p class="quiet">Fields in which the runs differ.</p>'
        yield table(["field", *(run.name for run in runs)], rows)
    for run in runs:
        heading = "Fields that are not the default" + f": {run.name}" * (len(runs) > 1)
        rows = [[name, run.fields[name]] for name in run.changed]
        text = "\n".join(f"{name} = {value}" for name, value in run.fields.items())
        changed = table(["field", "value"], rows)
        is_open = " open" * (len(runs) == 1)
        yield f"<details{is_open}><summary>{html.escape(heading)}</summary>{changed}</details>"
        heading = f"All fields{f': {run.name}' * (len(runs) > 1)}"
        yield (
            f"<details><summary>{html.escape(heading)}</summary>"
            f"<pre>{html.escape(text)}</pre></details>"
        )


def _starts(starts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for start in starts:
        versions = " ".join(f"{name} {version}" for name, version in start["libraries"].items())
        rows = [
            ["start", f"{start['time']}, step {start['step']:,}"],
            ["command", start["command"]],
            ["devices", f"{start['devices']}, {start['processes']} process(es), {start['system']}"],
            ["versions", f"Python {start['python']} {versions}"],
        ]
        yield table(["", ""], rows)


def table(head: Cells, rows: Iterable[Cells]) -> str:
    """A table as HTML; the first cell of each row is its heading."""
    lines = [
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for first, *cells in rows
    ]
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def picture(png: bytes, text: str) -> str:
    """A picture as HTML, with a text for those who do not see it."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'

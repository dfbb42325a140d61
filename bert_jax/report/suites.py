"""Scores of a suite as a table and as a picture.

Both take the plain values that `bert_jax.evaluation.suites` gives, as they are in `scores.json`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bert_jax.report.figures import label, save
from bert_jax.terminal import printable

Values = Mapping[str, Any]
_NAME = 53  # columns of the table for a name
_GROUP = "by_"


def table(scores: Values) -> list[str]:
    """The lines of a table, none of more than 80 columns."""
    return list(_pairs_table(scores) if "by_paradigm" in scores else _labels_table(scores))


def _pairs_table(scores: Values) -> Iterator[str]:
    yield _row("", "accuracy", "s.e.", "ties", "pairs")
    kinds = _kinds(scores)
    for heading, paradigms in _by_groups(scores):
        if heading:
            yield _row(heading)
        for name in paradigms:
            yield _share_row(f"{'  ' * bool(heading)}{name}", scores["by_paradigm"][name])
    for kind in kinds:
        yield ""
        for name, share in sorted(scores[_GROUP + kind].items()):
            yield _share_row(f"{kind}: {name}", share)
    if len(scores["by_paradigm"]) > 1:
        yield ""
        count = len(scores["by_paradigm"])
        yield _share_row(f"mean over {count} paradigms", scores["over_paradigms"])
        yield _share_row("mean over all pairs", scores["over_pairs"])
    yield _row("chance", f"{scores['chance']:.1%}")


def _labels_table(scores: Values) -> Iterator[str]:
    count, good = scores["sentences"], scores["acceptable"]
    yield f"{count:,} sentences, {good / count:.1%} of them acceptable"
    yield f"{'':<34}{'AUC':>8}{'s.e.':>7}{'best Matthews':>16}{'threshold':>13}"
    for name, title in (("total", "sum over the tokens"), ("per_token", "mean over the tokens")):
        found = scores[name]
        yield (
            f"{title:<34}{found['auc']:>8.1%}{found['auc_standard_error']:>7.1%}"
            f"{found['best_matthews']:>16.3f}{found['threshold']:>13.2f}"
        )
    chance = scores["chance"]
    yield f"{'chance':<34}{chance['auc']:>8.1%}{'':>7}{chance['best_matthews']:>16.3f}"
    yield "best Matthews: with the threshold that is best on these very sentences"


def _share_row(name: str, share: Values) -> str:
    numbers = (f"{share['accuracy']:.1%}", f"{share['standard_error']:.1%}")
    return _row(name, *numbers, f"{share['ties']:,}", f"{share['pairs']:,}")


def _row(name: str, accuracy: str = "", error: str = "", ties: str = "", pairs: str = "") -> str:
    name = printable(name)
    if len(name) > _NAME:
        name = f"{name[: _NAME - 3]}..."
    return f"{name:<{_NAME}}{accuracy:>8}{error:>6}{ties:>6}{pairs:>7}".rstrip()


def _kinds(scores: Values) -> list[str]:
    """Kinds of groups, the widest first."""
    kinds = [name.removeprefix(_GROUP) for name in scores if name.startswith(_GROUP)]
    return [kind for kind in kinds if kind != "paradigm"]


def _by_groups(scores: Values) -> Iterator[tuple[str, list[str]]]:
    """Heading and paradigms of each group of the narrowest kind."""
    kinds, paradigms = _kinds(scores), scores["by_paradigm"]
    found: dict[str, list[str]] = {}
    for name in paradigms:
        heading = ", ".join(paradigms[name][kind] for kind in kinds)
        found.setdefault(heading, []).append(name)
    for heading in sorted(found):
        yield heading, sorted(found[heading])


def draw_suite(scores: Values, output: epath.PathLike, *, title: str) -> None:
    """Draws the accuracy of each paradigm with its standard error, by group, beside chance.

    Args:
      scores: of minimal pairs.
      output: path of the PNG.
      title: what was scored.
    """
    groups = list(_by_groups(scores))
    kinds = _kinds(scores)
    widest = [
        scores["by_paradigm"][names[0]].get(kinds[0], "") if kinds else "" for _, names in groups
    ]
    colors = {name: f"C{index % 10}" for index, name in enumerate(dict.fromkeys(widest))}
    count = sum(len(names) for _, names in groups)
    height = 1.6 + 0.19 * count + 0.26 * len(groups)
    figure = Figure(figsize=(9, max(height, 2.4)), layout="constrained")
    axis = figure.subplots()
    y, ticks, names = 0.0, [], []
    for (heading, paradigms), wide in zip(groups, widest):
        if heading:
            narrow = scores["by_paradigm"][paradigms[0]][kinds[-1]]
            accuracies = [scores["by_paradigm"][name]["accuracy"] for name in paradigms]
            mean = sum(accuracies) / len(accuracies)
            ticks.append(y)
            names.append((f"{label(narrow)}  {mean:.0%}", True))
            y += 1
        for name in paradigms:
            share = scores["by_paradigm"][name]
            axis.barh(
                y, 100 * share["accuracy"], height=0.75, color=colors[wide], alpha=0.8,
                xerr=100 * share["standard_error"], ecolor="black",
                error_kw={"elinewidth": 0.8, "capsize": 1.5},
            )  # fmt: skip
            ticks.append(y)
            names.append((label(name, 60), False))
            y += 1
        y += 0.4
    axis.set_yticks(ticks, [name for name, _ in names], fontsize=7)
    for tick, (_, is_heading) in zip(axis.yaxis.get_major_ticks(), names):
        tick.tick1line.set_visible(False)
        if is_heading:
            tick.label1.set_fontweight("bold")
    axis.set_ylim(y - 0.4, -1)
    axis.set_xlim(0, 100)
    axis.xaxis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    mean = scores["over_paradigms"]
    axis.axvline(100 * scores["chance"], color="black", linestyle="--", linewidth=1)
    axis.axvline(100 * mean["accuracy"], color="black", linewidth=1)
    axis.set_xlabel("pairs whose right sentence scores higher (%), with standard errors")
    axis.set_title(label(title, 90), fontsize=10)
    figure.legend(
        handles=_legend(scores, colors),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    save(figure, output, dpi=110)


def _legend(scores: Values, colors: Mapping[str, str]) -> Sequence[Line2D]:
    mean, chance = scores["over_paradigms"]["accuracy"], scores["chance"]
    lines = [
        Line2D([], [], color="black", linewidth=1, label=f"mean {mean:.1%}"),
        Line2D([], [], color="black", linewidth=1, linestyle="--", label=f"chance {chance:.0%}"),
    ]
    kinds = _kinds(scores)
    if len(colors) < 2 or len(kinds) < 2:  # names on the axis say it
        return lines
    means = {name: share["accuracy"] for name, share in scores[_GROUP + kinds[0]].items()}
    return lines + [
        Line2D(
            [], [], color=color, linewidth=6, alpha=0.8, label=f"{label(name)} {means[name]:.0%}"
        )
        for name, color in colors.items()
    ]

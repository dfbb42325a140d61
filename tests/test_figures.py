"""Pictures: what they show, and that no name or label can spoil one."""

import json
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from bert_jax.__main__ import main
from bert_jax.errors import UserError
from bert_jax.report.attention_maps import draw_picture
from bert_jax.report.confusion import draw_confusion
from bert_jax.report.curves import draw_curves
from bert_jax.report.figures import label
from bert_jax.report.units import listed, shown

pytestmark = pytest.mark.core

LABELS = [
    "$30k_to_$50k",
    "a_b^{c",
    r"\frac{1}$",
    "体育新闻",
    "x\ny\x1b[31m",
    "l" * 200,
    "😀",
    "",
    " ",
]


@pytest.fixture
def drawn(monkeypatch):
    """Collects the figures that are saved."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def keep(self, *arguments, **options):
        figures.append(self)
        return savefig(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "glyph missing from font"
        yield figures


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)} - {""}


def test_a_label_is_short_and_readable():
    assert label("$30k_to_$50k") == "$30k_to_$50k"
    assert label("нормально") == "нормально"
    assert label("x\ny\x1b[31m") == r"x\ny\x1b[31m"
    assert label("a" * 100 + "b" * 100) == "a" * 20 + "…" + "b" * 19
    assert label("\U0010fffd") == r"\U0010fffd"  # no font has it


def test_any_label_can_be_drawn(drawn, tmp_path):
    count = len(LABELS)
    matrix = np.arange(count**2).reshape(count, count)
    draw_confusion(matrix, LABELS, tmp_path / "confusion.png")
    attention = np.full((2, 2, count, count), 1 / count)
    assert draw_picture(tmp_path / "attention.png", LABELS, attention, title="$x_1")
    runs = {name: [{"step": 1, "split": "train", "loss": 1.0, name: 0.5}] for name in LABELS}
    draw_curves(runs, tmp_path / "curves.png")
    assert len(drawn) == 3
    for figure in drawn:
        assert "$30k_to_$50k" in texts(figure)
    assert "share of the class" in texts(drawn[0])
    assert "share of attention" in texts(drawn[1])
    assert r"x\ny\x1b[31m" in texts(drawn[2])


def run(steps: int, tokens_per_step: float, baseline: float) -> list[dict]:
    rates = {"tokens_per_second": tokens_per_step * 4, "steps_per_second": 4.0}
    return [
        {"step": 0, "split": "baseline", "mlm_loss": baseline, "mlm_accuracy": 0.0625},
        {"step": steps // 2, "split": "train", "mlm_loss": 6.0, "mlm_accuracy": 0.25} | rates,
        {"step": steps, "split": "train", "mlm_loss": 5.0, "mlm_accuracy": 0.5} | rates,
        {"step": steps, "split": "heldout", "mlm_loss": 5.5, "mlm_accuracy": 0.375},
    ]


def test_every_run_has_its_own_baselines(drawn, tmp_path):
    runs = {"runs/a/train": run(40, 100, 6.5), "runs/b/train": run(80, 200, 7.5)}
    draw_curves(runs, tmp_path / "curves.png")
    loss, accuracy = drawn[0].axes
    dashed = {
        (line.get_color(), *line.get_xydata().ravel())
        for line in loss.lines
        if line.get_linestyle() == "--"
    }
    assert dashed == {("C0", 0, 6.5, 40, 6.5), ("C1", 0, 7.5, 80, 7.5)}
    assert accuracy.lines[0].get_ydata().tolist() == [25, 50]
    assert accuracy.get_title() == "Masked LM accuracy (%)"
    (legend,) = drawn[0].legends
    found = [text.get_text() for text in legend.get_texts()]
    assert found == ["a", "b", "train", "held-out", "baseline"]


def test_curves_over_tokens(drawn, tmp_path):
    draw_curves({"a": run(40, 100, 6.5), "b": run(80, 200, 7.5)}, tmp_path / "x.png", "tokens")
    lines = [line for line in drawn[0].axes[0].lines if line.get_linestyle() == "-"]
    assert [line.get_xdata().tolist() for line in lines] == [[2e3, 4e3], [4e3], [8e3, 16e3], [16e3]]
    assert drawn[0].axes[0].get_xlabel() == "tokens"
    lines = [{name: x for name, x in line.items() if "second" not in name} for line in run(4, 1, 6)]
    with pytest.raises(UserError, match=r"^c: its metrics have no tokens_per_second"):
        draw_curves({"c": lines}, tmp_path / "x.png", "tokens")


def test_units_of_fine_tuning(drawn, tmp_path):
    scores = {"accuracy": 0.5, "macro_f1": 0.25, "loss": 1.5}
    draw_curves({"run": [{"step": 1, "split": "heldout"} | scores]}, tmp_path / "curves.png")
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert titles == ["accuracy (%)", "macro_f1 (%)", "loss (nats)"]
    scores = {"pearson": 0.5, "loss": 1.5}
    draw_curves({"run": [{"step": 1, "split": "heldout"} | scores]}, tmp_path / "curves.png")
    titles = [axes.get_title() for axes in drawn[1].axes if axes.get_title()]
    assert titles == ["pearson", "loss (squared error)"]


def test_plot_takes_any_history(tmp_path, capsys):
    for name, lines in {"a": run(40, 100, 6.5), "b": run(40, 100, 6.5)[:1]}.items():
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    output = tmp_path / "both.png"
    assert main(["plot", str(tmp_path / "a"), str(tmp_path / "b"), f"--output={output}"]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    assert main(["plot", str(tmp_path / "b")]) == 0  # a baseline and nothing else
    assert main(["plot", str(tmp_path / "a"), "--x=tokens"]) == 0
    assert capsys.readouterr().err == ""


def test_numbers_have_one_unit():
    assert shown("mlm_accuracy", 0.72345) == "72.3%"
    assert shown("f1", 1.0) == "100.0%"
    assert shown("recall@10", 0.5) == "50.0%"
    assert shown("mlm_loss", 5.43219) == "5.432"
    assert shown("pearson", 0.87654) == "0.8765"
    assert listed({"accuracy": 0.5, "loss": 0.25}) == "accuracy 50.0%  loss 0.25"


def test_settings_of_the_user_stay(tmp_path):
    before = dict(matplotlib.rcParams)
    draw_curves({"$": run(40, 100, 6.5)}, tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before

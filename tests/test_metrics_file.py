"""`metrics.jsonl`: damaged lines are set aside and reported, and nothing else is lost."""

import json

import pytest
from tensorboardX.proto.event_pb2 import Event

from bert_jax.__main__ import main
from bert_jax.errors import UserError
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.metrics import MetricsWriter

pytestmark = pytest.mark.core

GOOD = [
    {"step": 0, "split": "baseline", "mlm_loss": 6.5, "mlm_accuracy": 0.0625},
    {"step": 2, "split": "train", "loss": 7.25, "mlm_loss": 6.75, "mlm_accuracy": 0.125},
    {"step": 4, "split": "train", "loss": 7.0, "mlm_loss": 6.5, "mlm_accuracy": 0.25},
    {"step": 4, "split": "heldout", "loss": 6.5, "mlm_loss": 6.25, "mlm_accuracy": 0.25},
    {"step": 6, "split": "train", "loss": 6.0, "mlm_loss": 5.5, "mlm_accuracy": 0.5},
]
TEXTS = [json.dumps(line).encode() for line in GOOD]
BAD = {
    "a wrong byte": (TEXTS[2].replace(b'"step"', b'"st\x01ep"'), "not JSON"),
    "a byte that is not UTF-8": (TEXTS[2].replace(b"train", b"tr\xffin"), "byte 25 is not UTF-8"),
    "zeros": (bytes(64), "not JSON"),
    "two lines in one": (TEXTS[1] + TEXTS[2], "not JSON"),
    "cut short": (TEXTS[2][:-9], "not JSON"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "a list": (b'[4, "train", 7.0]', "expected object, got array"),
    "a number": (b"4", "expected object, got int"),
    "null": (b"null", "expected object, got null"),
    "no step": (b'{"split": "train", "loss": 7.0}', "missing required field step"),
    "no split": (b'{"step": 4, "loss": 7.0}', "missing required field split"),
    "step is text": (TEXTS[2].replace(b"4,", b'"4",'), "field step: expected int, got str"),
    "step is a fraction": (TEXTS[2].replace(b"4,", b"4.5,"), "field step: expected int, got fl"),
    "step is negative": (TEXTS[2].replace(b"4,", b"-4,"), "field step: expected int >= 0"),
    "step is huge": (TEXTS[2].replace(b"4,", b"4" * 99 + b","), "field step: "),
    "split is a number": (TEXTS[2].replace(b'"train"', b"3"), "field split: expected str, got int"),
    "a metric is text": (TEXTS[2].replace(b"6.5", b'"6.5"'), "expected float | null, got str"),
    "a metric is true": (TEXTS[2].replace(b"6.5", b"true"), "expected float | null, got bool"),
    "a metric is a group": (TEXTS[2].replace(b"6.5", b"{}"), "expected float | null, got object"),
    "half a character": (TEXTS[2].replace(b"train", b"tr\\ud83d"), "half a character"),
}


@pytest.fixture
def damaged(tmp_path):
    """Writes a history whose third line is replaced; returns the workdir."""

    def write(line: bytes):
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*TEXTS[:2], line, *TEXTS[3:], b""]))
        return tmp_path

    return write


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_line_is_left_out_and_reported(name, damaged, caplog):
    line, reason = BAD[name]
    assert read_metrics(damaged(line)) == [*GOOD[:2], *GOOD[3:]]
    assert "left out 1 damaged line(s): " in caplog.text
    assert "metrics.jsonl, line 3: " in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("name", BAD)
def test_a_resume_moves_a_damaged_line_aside(name, damaged, capsys):
    line, reason = BAD[name]
    workdir = damaged(line)
    with MetricsWriter(workdir, 6) as writer:
        writer.write(8, "train", {"loss": 5.5})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "metrics.jsonl, line 3: " in said[0]
    assert reason in said[0]
    assert said[0].endswith("; moved to metrics.bad.jsonl")
    assert (workdir / "metrics.bad.jsonl").read_bytes() == line + b"\n"
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines == [*GOOD[:2], *GOOD[3:], {"step": 8, "split": "train", "loss": 5.5}]

    with MetricsWriter(workdir, 8):
        assert capsys.readouterr().out == ""
    with (workdir / "metrics.jsonl").open("ab") as file:
        file.write(b"x\n")
    with MetricsWriter(workdir, 8):
        pass
    assert (workdir / "metrics.bad.jsonl").read_bytes() == line + b"\nx\n"


def test_a_resume_drops_only_the_lines_after_its_step(tmp_path):
    text = b"\n".join([*TEXTS, b'{"step": 8, "spl'])
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert read_metrics(tmp_path) == GOOD  # the cut line is no damage
    with MetricsWriter(tmp_path, 4):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(t + b"\n" for t in TEXTS[:4])
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_a_whole_history_is_not_written_again(damaged):
    path = damaged(TEXTS[2]) / "metrics.jsonl"
    before = path.stat()
    with MetricsWriter(path.parent, 6):
        pass
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_numbers_that_are_not_finite_are_left_out(tmp_path, caplog):
    with MetricsWriter(tmp_path, 0) as writer:
        writer.write(1, "train", {"loss": float("nan"), "mlm_loss": 6.5, "x": float("-inf")})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "split": "train", "mlm_loss": 6.5}\n'

    old = '{"step": 1, "split": "train", "loss": NaN, "mlm_loss": 6.5, "x": -Infinity, "y": null}\n'
    (tmp_path / "metrics.jsonl").write_text(old)
    assert read_metrics(tmp_path) == [{"step": 1, "split": "train", "mlm_loss": 6.5}]
    assert not caplog.text
    with MetricsWriter(tmp_path, 1):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_damaged_history_is_drawn(damaged, capsys):
    workdir = damaged(b"\xff")
    assert main(["plot", str(workdir)]) == 0
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_history(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file"):
        read_metrics(tmp_path)
    with MetricsWriter(tmp_path, 6) as writer:
        writer.write(8, "train", {"loss": 5.5})
    assert read_metrics(tmp_path) == [{"step": 8, "split": "train", "loss": 5.5}]


def test_events_of_tensorboard(tmp_path):
    with MetricsWriter(tmp_path, 6) as writer:
        writer.write(8, "train", {"loss": 5.5, "mlm_accuracy": 0.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:  # length, checksum, record, checksum
        end = 12 + int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12:end]))
        content = content[end + 4 :]
    first, start, event = events
    assert first.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (7, start.session_log.START)
    assert event.step == 8
    values = {value.tag: value.simple_value for value in event.summary.value}
    assert values == {"train/loss": 5.5, "train/mlm_accuracy": 0.25}

"""What reaches a terminal, a pipe or a full disk: plain lines, one for an error, the right code."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from bert_jax.__main__ import main
from bert_jax.parallel import hosts
from bert_jax.report.units import compact, duration
from bert_jax.storage import errors_name, whole_file, write_json
from bert_jax.terminal import json_line, printable, progress
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.metrics import MetricsWriter, progress_line, scores_line

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
NASTY = "a\nb\x1b[31m\x9b2J\u2028\u202e\udcff\tc"
ESCAPED = r"a\nb\x1b[31m\x9b2J\u2028\u202e\udcff\tc"


def test_control_characters_become_escapes():
    assert printable(NASTY) == ESCAPED
    assert printable("naïve 体育 👩‍🚀 a\u3000b") == "naïve 体育 👩‍🚀 a\u3000b"
    assert printable(Path("x\ry")) == r"x\ry"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_exact_and_plain(encoding):
    value = {NASTY: [NASTY, "体育 é"], "x": 0.5, "n": float("nan"), "i": (float("inf"), None)}
    line = json_line(value, encoding=encoding)
    assert line == printable(line)
    line.encode(encoding)
    assert json.loads(line) == value | {"n": None, "i": [None, None]}


def test_json_files_have_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"f1": float("nan"), "loss": [0.5, float("-inf")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"f1": None, "loss": [0.5, None]}


@pytest.mark.parametrize(
    "command",
    [
        [NASTY],
        ["plot", NASTY],
        ["plot", "x", f"--{NASTY}"],
        ["plot", "x", f"--x={NASTY}"],
        ["prepare", NASTY, "--output=x"],
        ["pretrain", f"--config={NASTY}", "--workdir=x"],
        ["pretrain", "--config=bert:tiny", f"--config.data.store={NASTY}", f"--workdir={NASTY}"],
        ["pretrain", "--config=bert:tiny", f"--config.{NASTY}=3", "--workdir=x"],
        ["finetune", "--config=finetune:tagging", f"--config.init_from={NASTY}", "--workdir=x"],
        ["evaluate", f"--workdir={NASTY}"],
        ["predict", "classify", f"--model={NASTY}", NASTY],
        ["export", f"--model={NASTY}", "--output=x"],
        ["convert", NASTY, "x", "--to=google"],
    ],
)
def test_errors_are_one_plain_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(command)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    *usage, message = capsys.readouterr().err.splitlines()
    assert all(line.startswith(("usage: ", "  ")) for line in usage)
    assert message == printable(message)
    assert not list(tmp_path.iterdir())


def run(command: list[str], stdout: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bert_jax", *command],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    process = run(["--help"], writer)
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_output_is_an_error():
    with Path("/dev/full").open("w") as full:
        process = run(["--help"], full.fileno())
    message = "bert-jax: error: standard output: No space left on device\n"
    assert (process.returncode, process.stderr) == (1, message)


def test_a_run_goes_on_without_its_reader():
    reader, writer = os.pipe()
    os.close(reader)
    script = "from bert_jax.parallel import hosts\nfor i in range(3): hosts.print_once(str(i))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    message = "standard output was closed; the run goes on\n"
    assert (process.returncode, process.stderr) == (0, message)


@pytest.fixture
def small_files():
    """No file may grow beyond 100 kB: writing more fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_does_not_fit(tmp_path, request):
    state = {"params": {"w": jnp.arange(8.0)}}
    workdir = epath.Path(tmp_path)
    with Checkpoints(workdir, keep=2) as checkpoints:
        checkpoints.save(1, state, {})
    request.getfixturevalue("small_files")
    rng = np.random.default_rng(0)  # what cannot be compressed
    large = {"params": {"w": jnp.asarray(rng.normal(size=300_000), jnp.float32)}}
    with pytest.raises(OSError, match="File too large") as caught, Checkpoints(workdir) as written:
        written.save(2, large, {})
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "checkpoints")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        params, step = checkpoints.read_params()
    assert (step, params["w"].tolist()) == (1, list(range(8)))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(200_000)),
        lambda path: np.save(path.open("wb"), np.zeros(50_000)),
    ],
)
@pytest.mark.usefixtures("small_files")
def test_a_file_that_does_not_fit(write, tmp_path):
    (tmp_path / "x.npy").write_text("before")
    with pytest.raises(OSError, match=r"x\.npy") as caught, whole_file(tmp_path / "x.npy") as file:
        write(file)
    assert caught.value.filename == str(tmp_path / "x.npy")
    assert (tmp_path / "x.npy").read_text() == "before"


@pytest.mark.usefixtures("small_files")
def test_metrics_that_do_not_fit(tmp_path):
    def write() -> None:
        with MetricsWriter(tmp_path, 0) as writer:
            for step in range(3000):
                writer.write(step, "train", {"loss": 0.125, "mlm_loss": 0.25})

    with pytest.raises(OSError, match="File too large") as caught:
        write()
    assert Path(caught.value.filename).parent == tmp_path


@pytest.mark.parametrize(
    ("message", "number"),
    [
        ("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']", errno.ENOSPC),
        ("UNKNOWN: ... Read-only file system [os_error_code='30']", errno.EROFS),
        ("I/O error: File too large (os error 27)", errno.EFBIG),
        ("model.ckpt; No space left on device", errno.ENOSPC),
    ],
)
def test_errors_of_other_libraries(message, number):
    with pytest.raises(OSError, match="there") as caught, errors_name("there"):
        raise ValueError(message)
    assert (caught.value.errno, caught.value.filename) == (number, "there")
    with pytest.raises(ValueError, match=r"^shapes differ$"), errors_name("there"):
        raise ValueError("shapes differ")


def test_a_device_is_written_to_directly(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(tmp_path / "pipe") as file:
        file.write_text("text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    with whole_file(tmp_path / "x") as one, whole_file(tmp_path / "x") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "x").read_text() == "one"  # its block ended last
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_log_has_no_bars(capsys):
    with progress("a\nb", 100) as bar:
        bar.delay = bar.mininterval = 0
        bar.update(50)
        bar.update(50)
    written = capsys.readouterr().err
    assert "\r" not in written
    assert all(line.startswith(r"a\nb: ") for line in written.splitlines())


def test_waiting_is_told(capsys):
    with hosts.waiting("compiling the training step"):
        pass
    assert capsys.readouterr().out == "compiling the training step ...\n"


LINE = {
    "loss": 9.87654,
    "mlm_loss": 8.5,
    "mlm_accuracy": 0.23456,
    "nsp_loss": 0.6,
    "nsp_accuracy": 0.98765,
    "mlm_perplexity": 1e5,
    "padding": 0.125,
}


def test_lines_of_a_run_fit_80_columns():
    rates = {"tokens_per_second": 987654.3, "steps_per_second": 999_999 / (99 * 3600 + 3599)}
    line = progress_line(1, 1_000_000, LINE | rates)
    assert line == (
        "step       1/1000000  loss 9.877  mlm 23.5%  nsp 98.8%  988k tok/s  ETA 99:59:59"
    )
    assert len(line) == 80
    assert scores_line(LINE) == "loss 9.877  mlm 23.5%  nsp 98.8%"
    many = {f"metric_{i}": 0.5 for i in range(20)}
    assert scores_line(many, 30) == "metric_0 0.5  metric_1 0.5"


def test_counts_and_times():
    found = [compact(x) for x in (0, 987, 999.7, 12_345, 1_234_567, 2.5e12)]
    assert found == ["0", "987", "1k", "12.3k", "1.23M", "2.5e+03G"]
    assert [duration(x) for x in (0.4, 61, 3600)] == ["0:00", "1:01", "1:00:00"]

"""Real processes on one machine, which meet over loopback: 2 with 4 devices each, 4 with 2."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from test_training import TIMES, recipe

from bert_jax.api.plan import planned_step
from bert_jax.api.pretrain import pretrain
from bert_jax.cli import evaluate
from bert_jax.errors import EXIT_STOPPED, UserError
from bert_jax.parallel import hosts
from bert_jax.parallel.mesh import make_mesh
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.checkpoints import Checkpoints

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
TIMEOUT = 1800  # seconds; never reached, also on a busy machine
# Runs a JSON config: how tests give a process a recipe of their own.
PRETRAIN = """
import sys
from etils import epath
from bert_jax.cli import flags
from bert_jax.config import recipes
from bert_jax.config.saved import read_pretrain_config
from bert_jax.__main__ import main
def load_config(cls, argv):
    return read_pretrain_config(epath.Path(argv[0].removeprefix("--config=")))
recipes.load_config = load_config
flags.config_arguments = lambda config, overrides: [f"--config={config}"]
sys.exit(main(sys.argv[1:]))
"""


class Processes:
    """Some processes of one run."""

    def __init__(self, count: int, *arguments: str, cwds: list[Path] | None = None):
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={8 // count}")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
        self.processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-c", PRETRAIN, *arguments),
                    *(f"--coordinator=127.0.0.1:{port}", f"--num-processes={count}"),
                    *(f"--process-id={process}", "--heartbeat-timeout=30"),
                ],
                cwd=cwds[process] if cwds else None,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(count)
        ]

    def wait(self) -> tuple[list[int], list[str], list[str]]:
        """Exit codes, outputs and errors; Gloo's own lines left out."""
        try:
            outputs = [process.communicate(timeout=TIMEOUT) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        # Its threads may write into each other's lines.
        gloo = re.compile(r"\[Gloo\].*\n|^.*\bpeer ranks\b.*\n", re.MULTILINE)
        without_gloo = [gloo.sub("", output) for output, _ in outputs]
        codes = [process.returncode for process in self.processes]
        return codes, without_gloo, [error for _, error in outputs]


def steps(store: Path, number: int, **changes):
    """A rate that is the same however many steps are planned, so that a run can be prolonged."""
    fields = {"steps": number, "log_every": 2, "eval_every": 0, "checkpoint_every": 10**6}
    fields |= {"optimizer.schedule": "constant", "optimizer.warmup_steps": 0}
    fields |= {"optimizer.gradient_accumulation": 1, "model.num_heads": 4}
    return recipe(store, **fields | changes)


def command(folder: Path, config) -> tuple[str, ...]:
    """The arguments that train with this config in folder/run."""
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return "pretrain", f"--config={path}", f"--workdir={folder / 'run'}"


def comparable(workdir: Path, split: str) -> list[list[float]]:
    return [
        [value for name, value in line.items() if name not in (*TIMES, "split")]
        for line in read_metrics(workdir)
        if line["split"] == split
    ]


@pytest.fixture(scope="module")
def one_process(sotu_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    assert pretrain(steps(sotu_store, 12), epath.Path(workdir))
    return workdir


def wait_for_step(run: Processes, workdir: Path, step: int):
    """Until the metrics of a step are written."""
    deadline = time.monotonic() + TIMEOUT
    while f'{{"step": {step}, "split": "train"' not in (workdir / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in run.processes), run.wait()
        time.sleep(0.1)


def test_any_number_of_processes_is_the_same_run(one_process, sotu_store, tmp_path):
    """Four steps on 4 processes, four on 1, then 2 until one is told to stop; three meshes."""
    # A tensor axis of 4 spans two processes of 2 devices: both hold the same rows.
    mesh = {"mesh.data": 2, "mesh.fsdp": 1, "mesh.tensor": 4}
    run = Processes(4, *command(tmp_path, steps(sotu_store, 4, **mesh)))
    codes, outputs, errors = run.wait()
    assert codes == [0] * 4, errors
    assert "step 4/4  loss " in outputs[0]
    for process in (1, 2, 3):
        assert re.fullmatch(rf"process {process} of 4 on .*: 2 of 8 .*", outputs[process].strip())

    workdir = tmp_path / "run"
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    assert pretrain(steps(sotu_store, 8, **mesh), epath.Path(workdir))

    run = Processes(2, *command(tmp_path, steps(sotu_store, 10**6)))
    wait_for_step(run, workdir, 12)
    run.processes[1].send_signal(signal.SIGINT)
    codes, outputs, errors = run.wait()
    assert codes == [EXIT_STOPPED] * 2, errors
    assert "resuming at step 8\n" in outputs[0]
    saved = int(re.search(r"saved at step (\d+)", outputs[0])[1])
    assert saved == max(int(path.name) for path in (workdir / "checkpoints").iterdir())

    train = comparable(workdir, "train")[:6]
    np.testing.assert_allclose(train, comparable(one_process, "train"), rtol=1e-5)
    baseline = comparable(workdir, "baseline")
    np.testing.assert_allclose(baseline, comparable(one_process, "baseline"), rtol=1e-5)


def test_when_one_dies_the_others_end(one_process, sotu_store, tmp_path):
    shutil.copytree(one_process, tmp_path / "run")
    run = Processes(2, *command(tmp_path, steps(sotu_store, 10**6)))
    wait_for_step(run, tmp_path / "run", 14)
    run.processes[1].kill()
    codes, _, _ = run.wait()
    assert codes[0] not in (0, EXIT_STOPPED)


def test_evaluation_by_two_processes(one_process, capsys):
    arguments = ("evaluate", f"--workdir={one_process}", "--json")
    codes, (first, second), errors = Processes(2, *arguments).wait()
    assert codes == [0, 0], errors
    assert second.count("\n") == 1
    evaluate.main(arguments[1:])
    alone, together = json.loads(capsys.readouterr().out), json.loads(first.splitlines()[-1])
    for split in ("heldout", "baseline"):
        assert together[split] == pytest.approx(alone[split], rel=1e-5)


def test_restored_into_any_mesh(one_process, sotu_store):
    """Saved on 8x1x1."""
    states = []
    config = steps(sotu_store, 12)
    for sizes in ((8, 1, 1), (2, 2, 2), (1, 8, 1)):
        mesh = make_mesh(*sizes)
        abstract = planned_step(config, mesh).abstract_state
        with Checkpoints(one_process, read_only=True) as checkpoints:
            state, _ = checkpoints.restore(abstract)
        states.append(jax.device_get(state))
    jax.tree.map(np.testing.assert_array_equal, *states[:2])
    jax.tree.map(np.testing.assert_array_equal, *states[::2])


def test_alone_in_a_run_of_two_says_what_it_waits_for():
    script = "from bert_jax.parallel import hosts; hosts.HINT_AFTER_SECONDS = 0.1" + PRETRAIN
    arguments = ["evaluate", "--workdir=none", "--coordinator=127.0.0.1:1", "--num-processes=2"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments, "--process-id=1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "still waiting for the other processes" in process.stderr.readline()
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--process-id=0"], "belong together: give all"),
        (
            ["--coordinator=a:1", "--num-processes=2", "--process-id=2"],
            "--process-id=2 must be from 0 to --num-processes - 1 = 1",
        ),
        (["--platform=tpu"], "--platform=tpu, but JAX found only cpu devices"),
    ],
)
def test_wrong_flags(flags, message, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        evaluate.main([f"--workdir={tmp_path}", *flags])


def test_a_workdir_of_each_host_is_refused(sotu_store, tmp_path):
    """Two places under the same name, as on two machines."""
    cwds = [tmp_path / "a", tmp_path / "b"]
    for cwd in cwds:
        cwd.mkdir()
    verb, config, _ = command(tmp_path, steps(sotu_store, 12))
    codes, _, errors = Processes(2, verb, config, "--workdir=run", cwds=cwds).wait()
    assert codes == [2, 2]
    for error in errors:
        assert "error: run is not shared: 1 of 2 processes" in error
    assert not list((tmp_path / "a" / "run").iterdir())


def test_what_one_refuses_all_refuse(sotu_store, tmp_path):
    """The store is missing on the second host."""
    cwds = [tmp_path / "a", tmp_path / "b"]
    for cwd in cwds:
        cwd.mkdir()
    (cwds[0] / "store").symlink_to(sotu_store)
    codes, _, errors = Processes(2, *command(tmp_path, steps(Path("store"), 12)), cwds=cwds).wait()
    assert codes == [2, 2]
    assert "error: process 1: store" in errors[0]
    assert "error: store" in errors[1]


def test_different_configs_are_refused(sotu_store, tmp_path):
    cwds = [tmp_path / "a", tmp_path / "b"]
    for cwd, number in zip(cwds, (12, 13)):
        cwd.mkdir()
        (cwd / "config.json").write_text(json.dumps(steps(sotu_store, number).to_dict()))
    arguments = ("pretrain", "--config=config.json", f"--workdir={tmp_path / 'run'}")
    codes, _, errors = Processes(2, *arguments, cwds=cwds).wait()
    assert codes == [2, 2]
    for error in errors:
        assert "error: process 1 differs from process 0: steps: 12 -> 13" in error
    assert not (tmp_path / "run").exists()


def test_the_process_that_holds_the_tpu_is_named(tmp_path, monkeypatch):
    holder, other = tmp_path / "4711", tmp_path / "4712"
    for process, file in ((holder, "/dev/vfio/3"), (other, "/dev/vfio/vfio")):
        (process / "fd").mkdir(parents=True)
        (process / "fd" / "7").symlink_to(file)
        (process / "cmdline").write_bytes(b"python3\0train.py\0")
    with pytest.raises(UserError, match=r"by process 4711 \(python3 train.py\): wait for it"):
        hosts.check_tpu_is_free(tmp_path)
    shutil.rmtree(holder)
    hosts.check_tpu_is_free(tmp_path)

    def taken():
        raise UserError("taken")

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hosts, "check_tpu_is_free", taken)
    with pytest.raises(UserError, match="taken"):  # JAX has fallen back to the CPU
        evaluate.main([f"--workdir={tmp_path}", "--platform=tpu"])

    def unable():
        raise RuntimeError("Unable to initialize backend 'tpu': ABORTED: The TPU is already in use")

    monkeypatch.setattr(jax, "default_backend", unable)
    with pytest.raises(UserError, match="taken"):
        evaluate.main([f"--workdir={tmp_path}"])

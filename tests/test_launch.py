"""The scripts in launch/: what they call, and a whole run in a fake cloud with real processes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_cloud import Cloud, Unit

from bert_jax.report.metrics_file import read_metrics

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in (ROOT / "launch").rglob("*.sh"))
TPU = {path.stem: path for path in SCRIPTS if path.parent.name == "tpu" and path.stem != "common"}
ARGUMENTS = {
    "babysit": ["--config=bert_base", "--workdir=gs://bucket/runs/base"],
    "profile": ["gs://bucket/runs/base"],
    "run": ["--config=bert_base", "--config.phases[0].steps=9", "--workdir=it's here"],
    "xpk": ["--config=bert_base"],
}
SETTINGS = {
    "TPU_PROJECT": "my-project",
    "TPU_ZONE": "my-zone",
    "TPU_NAME": "bert",
    "TPU_TYPE": "v5litepod-16",
    "TPU_CLUSTER": "my-cluster",
    "TPU_POLL_SECONDS": "1",
}


def launch(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    return subprocess.run(
        ["bash", TPU[name], *arguments],
        env=path | {"TPU_ENV": "/dev/null"} | environment,
        capture_output=True,
        text=True,
    )


def tool(name: str) -> str:
    """Its path; beside this Python or anywhere."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def test_shellcheck_finds_nothing():
    run = subprocess.run(
        [tool("shellcheck"), *SCRIPTS], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout == ""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_explains_itself(path):
    text = path.read_text()
    if path.name in ("environment.sh", "common.sh"):  # sourced
        assert text.startswith("# shellcheck shell=bash\n")
        return
    assert "\nset -euo pipefail\n" in text
    run = subprocess.run(["bash", path, "--help"], capture_output=True, text=True, env={})
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout) > 60
    assert "set -e" not in run.stdout


@pytest.mark.parametrize(("code", "queued"), [(0, ""), (2, ""), (75, "requeue 7\n")])
def test_slurm_queues_a_run_again_that_was_stopped(tmp_path, code, queued):
    arguments = ["--config=bert_base", "--workdir=it's here"]
    fakes = {
        "srun": f'printf "%s\\n" "$@" > "{tmp_path}/srun.txt"; exit {code}',
        "scontrol": f'echo "$@" >> "{tmp_path}/scontrol.txt"',
    }
    (tmp_path / "scontrol.txt").write_text("")
    for name, script in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    copied = shutil.copy(ROOT / "launch/slurm.sh", tmp_path / "slurm_script")  # as Slurm does
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "7",
    }
    run = subprocess.run(["bash", copied, *arguments], env=environment)
    assert run.returncode == code
    started = (tmp_path / "srun.txt").read_text().splitlines()
    assert started == [
        *("--kill-on-bad-exit=1", "bert-jax", "pretrain", "--platform=gpu"),
        *arguments,
    ]
    assert (tmp_path / "scontrol.txt").read_text() == queued


@pytest.mark.parametrize("missing", ["TPU_PROJECT", "TPU_ZONE", "TPU_NAME"])
def test_a_missing_setting_is_named(tmp_path, missing):
    path = tmp_path / "tpu.env"
    path.write_text("".join(f"{k}={v}\n" for k, v in SETTINGS.items() if k != missing))
    run = launch("status", TPU_ENV=str(path))
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {missing} is not set: give it in {path}")


def test_the_environment_goes_before_the_file():
    example = str(ROOT / "launch/tpu.env.example")
    run = launch("create", "--dry-run", TPU_ENV=example, TPU_ZONE="us-east5-b", TPU_TYPE="v6e-8")
    assert run.stdout == (
        "gcloud compute tpus queued-resources create bert --project=my-project --zone=us-east5-b "
        "--quiet --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --node-id=bert\n"
    )


def test_a_wrong_type_is_refused():
    run = launch("create", **SETTINGS | {"TPU_TYPE": "v5e-8"})
    assert run.returncode == 2
    assert "TPU_TYPE=v5e-8: use a type like v2-8" in run.stderr
    run = launch("create", **SETTINGS | {"TPU_TYPE": "tpu7x-8"})
    assert run.returncode == 2
    assert "use launch/tpu/xpk.sh" in run.stderr


def dry_run(name: str, **settings: str) -> list[list[str]]:
    """The commands that a script would call."""
    run = launch(name, "--dry-run", *ARGUMENTS.get(name, []), **SETTINGS | settings)
    assert run.returncode == 0, run.stderr
    return [shlex.split(line) for line in run.stdout.splitlines()]


def test_arguments_reach_the_program_unchanged():
    """Through two shells."""
    (ssh,) = dry_run("run")
    (command,) = [word.removeprefix("--command=") for word in ssh if word.startswith("--command=")]
    words = shlex.split(command)
    assert words[words.index("pretrain") :] == ["pretrain", "--platform=tpu", *ARGUMENTS["run"]]


def test_gcloud_knows_all_arguments(tmp_path):
    """gcloud parses before it looks for credentials, of which there are none here."""
    gcloud = tool("gcloud")
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    }
    calls = dry_run("create", TPU_SLICES="2", TPU_SPOT="true")
    assert {"--node-count=2", "--spot"} < set(calls[0])
    for name in sorted(set(TPU) - {"worker", "xpk"}):
        calls += [words for words in dry_run(name) if words[0] == "gcloud"]
    # One of each: ssh with another command is the same to the parser.
    kinds = {tuple(word.partition("=")[0] for word in words): words[1:] for words in calls}
    assert len(kinds) == 8
    for arguments in kinds.values():
        run = subprocess.run([gcloud, *arguments], env=environment, capture_output=True, text=True)
        assert run.returncode == 1, run.stderr
        assert "active account selected" in run.stderr


def test_gcloud_refuses_what_it_does_not_know(tmp_path):
    arguments = ["compute", "tpus", "queued-resources", "describe", "bert", "--region=x"]
    run = subprocess.run([tool("gcloud"), *arguments], capture_output=True)
    assert run.returncode == 2


def test_xpk_knows_all_arguments():
    xpk = tool("xpk")
    (call,) = [words[1:] for words in dry_run("xpk") if words[0] == "xpk"]
    call = [re.sub("(?<=--script-dir=).*", str(ROOT), word) for word in call]  # must be there
    run = subprocess.run([xpk, *call, "--help"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    flags = [word.partition("=")[0] for word in call if word.startswith("--")]
    assert [flag for flag in flags if not re.search(rf"{flag}\b", run.stdout)] == []


@pytest.fixture
def cloud(tmp_path):
    return Cloud.make(tmp_path / "cloud")


def settings(cloud: Cloud, **changes: str) -> dict[str, str]:
    devices = re.sub("device_count=8", "device_count=1", os.environ["XLA_FLAGS"])
    return cloud.environment | {"XLA_FLAGS": devices, "TPU_ENV": "/dev/null"} | SETTINGS | changes


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("exit 0", 0, "the run has finished"),
        ("exit 2", 2, "the run refuses its arguments"),
        ("exit 1", 1, "the run ended with exit code 1; given up after 2 restarts"),
    ],
)
def test_babysit_knows_the_exit_codes(cloud, command, code, says):
    environment = settings(cloud, FAKE_BERT_JAX=command, TPU_RESTARTS="2")
    run = launch("babysit", "--workdir=x", **environment)
    assert run.returncode == code, run.stderr
    assert says in run.stdout.splitlines()[-1]
    assert run.stdout.count("restart ") == (2 if code == 1 else 0)


def test_babysit_recreates_what_was_taken_away(cloud, sotu_store, tmp_path):
    """From nothing to a finished run on two workers, with a preemption in the middle.

    The recipe takes the number of steps from a file: more than the run can do, until it is
    preempted.
    """
    environment = settings(cloud, TPU_SPOT="true")
    workdir, steps_file, recipe = (tmp_path / name for name in ("run", "steps", "recipe.py"))
    steps_file.write_text("1_000_000")
    recipe.write_text(
        "import pathlib\nfrom quickstart import get_config as quickstart\n"
        "def get_config():\n    config = quickstart()\n"
        f"    config.steps = int(pathlib.Path({str(steps_file)!r}).read_text())\n"
        "    return config\n"
    )
    arguments = [
        f"--config={recipe}",
        f"--workdir={workdir}",
        f"--config.data.store={sotu_store}",
        "--config.model.vocab_size=1000",
        "--config.model.hidden_size=32",
        "--config.model.intermediate_size=64",
        "--config.data.batch_size=16",
        "--config.log_every=5",
        "--config.eval_every=0",
        "--config.eval_batches=1",
        "--config.checkpoint_every=1_000_000",
    ]
    log = tmp_path / "babysit.log"
    with log.open("w") as output:
        babysit = subprocess.Popen(
            ["bash", TPU["babysit"], *arguments], env=environment, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: '"step": 10' in (workdir / "metrics.jsonl").read_text(), babysit)
        status = launch("status", **environment)
        assert re.fullmatch(r"ACTIVE\n(bert-jax on \S+: running 0 .*\n){2}", status.stdout)
        again = launch("run", *arguments, **environment)
        assert again.returncode == 1
        assert "it exists" in again.stderr
        profile = launch("profile", str(workdir), str(tmp_path / "fetched"), **environment)
        assert profile.returncode == 0, profile.stderr
        with cloud.preemption():
            (saved,) = map(int, os.listdir(workdir / "checkpoints"))
            steps_file.write_text(f"{saved + 10}")
        assert babysit.wait(1800) == 0
    finally:
        babysit.kill()
    traces = tmp_path / "fetched" / "profile" / "plugins" / "profile" / "latest"
    for process in (0, 1):
        assert (traces / f"process_{process}.xplane.pb").stat().st_size > 1000

    lines = [line.partition(" ")[2] for line in log.read_text().splitlines() if line[2] == ":"]
    assert lines == [
        "asking for bert",
        "bert: WAITING_FOR_RESOURCES",
        "bert: PROVISIONING",
        "bert: ACTIVE",
        "setting up and starting the run",
        "the TPU was taken away; restart 1 of 20 in 1 s",
        "asking for bert",
        "bert: WAITING_FOR_RESOURCES",
        "bert: PROVISIONING",
        "bert: ACTIVE",
        "setting up and starting the run",
        "the run has finished",
    ]
    journal = Unit(cloud.workers("bert")[0]).journal.read_text()
    resumed = int(re.search(r"resuming at step (\d+)", journal)[1])
    assert resumed == saved > 10
    steps = [line["step"] for line in read_metrics(workdir) if line["split"] == "train"]
    assert steps == [*range(5, saved + 10, 5), saved + 10]
    assert launch("delete", **environment).returncode == 0
    assert launch("status", **environment).returncode == 1


def wait_for(condition, process: subprocess.Popen, seconds: float = 1800):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except FileNotFoundError:
            pass
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)

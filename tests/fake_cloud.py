"""A cloud in a folder: what the scripts in launch/tpu call, as links to this file of those names.

A TPU has `WORKERS` workers, each a folder that serves as the home of a user. `gcloud ... ssh` runs
the command there, in a shell with this cloud's sudo, systemctl and so on; systemd-run starts a real
process. FAKE_CLOUD names the folder. Arguments that are not expected end in an error.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORKERS = 2
COMMANDS = ("gcloud", "sudo", "systemctl", "systemd-run", "journalctl", "uv", "git")
ROOT = Path(__file__).parents[1]


class Cloud:
    """The folder: `calls.txt` of gcloud, `resource.json`, `bin/`, `workers/NODE/NUMBER/`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.resource = folder / "resource.json"

    @classmethod
    def make(cls, folder: Path) -> "Cloud":
        (folder / "bin").mkdir(parents=True)
        for name in COMMANDS:
            link = folder / "bin" / name
            link.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" {name} "$@"\n')
            link.chmod(0o755)
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "FAKE_CLOUD": str(self.folder),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }

    def workers(self, node: str) -> list[Path]:
        return sorted((self.folder / "workers" / node).iterdir())

    def set_state(self, state: str) -> None:
        self.write(json.loads(self.resource.read_text()) | {"state": state})

    def write(self, resource: dict[str, Any]) -> None:
        """Writes `resource.json` at once: another gcloud may be reading it."""
        written = self.resource.with_suffix(".new")
        written.write_text(json.dumps(resource))
        written.replace(self.resource)

    @contextlib.contextmanager
    def preemption(self) -> Iterator[None]:
        """As a spot VM is shut down: SIGTERM to the run; in the end nothing is left of it.

        The block is executed when the run has ended, before the scripts can see that. A real VM
        gives it 30 s, which are too few for a busy machine that runs tests.
        """
        self.set_state("SUSPENDING")
        units = [Unit(home) for home in (self.folder / "workers").glob("*/*")]
        for unit in units:
            unit.signal(signal.SIGTERM)
        for unit in units:
            unit.wait(1800)
        yield
        shutil.rmtree(self.folder / "workers")
        self.set_state("SUSPENDED")

    def gcloud(self, *arguments: str) -> int:
        with (self.folder / "calls.txt").open("a") as calls:
            calls.write(shlex.join(("gcloud", *arguments)) + "\n")
        options = dict(
            re.fullmatch(r"--([a-z-]+)=?(.*)", word, re.DOTALL).groups()
            for word in arguments
            if word.startswith("--")
        )
        group, tpus, kind, verb, *names = [word for word in arguments if not word.startswith("--")]
        assert (group, tpus) == ("compute", "tpus")
        assert (options["project"], options["zone"]) == ("my-project", "my-zone")
        return getattr(self, f"{kind}_{verb}".replace("-", "_"))(options, *names)

    def queued_resources_create(self, options: dict[str, str], name: str) -> int:
        assert not self.resource.exists()
        count = int(options.get("node-count", 1))
        nodes = [f"{name}-{i}" for i in range(count)] if count > 1 else [options["node-id"]]
        state = "WAITING_FOR_RESOURCES"
        self.write({"state": state, "nodes": nodes, "port": free_port()})
        return 0

    def queued_resources_describe(self, options: dict[str, str], name: str) -> int:
        if not self.resource.exists():
            print(f"ERROR: (gcloud.describe) NOT_FOUND: {name} was not found", file=sys.stderr)
            return 1
        resource = json.loads(self.resource.read_text())
        assert options["format"] == "value(state.state)"
        print(resource["state"])
        # Every look moves it on.
        following = {"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE"}
        if following.get(resource["state"]) == "ACTIVE":
            for node in resource["nodes"]:
                for number in range(WORKERS):
                    (self.folder / "workers" / node / str(number)).mkdir(parents=True)
        self.set_state(following.get(resource["state"], resource["state"]))
        return 0

    def queued_resources_delete(self, options: dict[str, str], name: str) -> int:
        assert {"force", "quiet"} < set(options)
        self.resource.unlink()
        return 0

    def tpu_vm_scp(self, options: dict[str, str], source: str, target: str) -> int:
        if ":" in source:
            node, _, path = source.partition(":")
            folder = self.workers(node)[int(options["worker"])] / path
            shutil.copytree(folder, Path(target) / folder.name)
            return 0
        assert options["worker"] == "all"
        for home in self.workers(target.removesuffix(":")):
            shutil.copy(source, home)
        return 0

    def tpu_vm_ssh(self, options: dict[str, str], node: str) -> int:
        port = str(json.loads(self.resource.read_text())["port"])
        homes = self.workers(node)
        if options["worker"] != "all":
            homes = [homes[int(options["worker"])]]
        shells = [
            subprocess.Popen(
                ["bash", "-c", options["command"]],
                cwd=home,
                env=os.environ | {"HOME": str(home), "FAKE_HOME": str(home), "FAKE_PORT": port},
            )
            for home in homes
        ]
        return max([shell.wait() for shell in shells])


class Unit:
    """The systemd unit of a worker."""

    def __init__(self, home: Path):
        self.journal, self.pid, self.code = (home / name for name in ("journal", "pid", "code"))

    @property
    def state(self) -> str:
        if not self.pid.exists():
            return "dead"
        if not self.code.exists():
            return "running"
        return "failed" if int(self.code.read_text()) else "exited"

    def start(self, command: list[str], environment: list[str]) -> None:
        script = f"{shlex.join(command)} >>{self.journal} 2>&1 & echo $! >{self.pid}.new; "
        script += f"mv {self.pid}.new {self.pid}; wait $!; echo $? >{self.code}.new; "
        script += f"mv {self.code}.new {self.code}"
        subprocess.Popen(
            ["env", *environment, "bash", "-c", script],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not self.pid.exists():
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        if self.state == "running":
            os.kill(int(self.pid.read_text()), number)

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.state == "running" and time.monotonic() < deadline:
            time.sleep(0.05)

    def forget(self) -> None:
        self.pid.unlink(missing_ok=True)
        self.code.unlink(missing_ok=True)


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def sudo(*command: str) -> int:
    return subprocess.call(command)


def systemctl(verb: str, *arguments: str) -> int:
    unit = Unit(Path(os.environ["FAKE_HOME"]))
    name, *options = sorted(arguments, key=lambda word: word.startswith("--"))
    assert name == "bert-jax"
    if verb == "show":
        values = {"SubState": unit.state, "ExecMainStatus": "0"}
        if unit.code.exists():
            values["ExecMainStatus"] = unit.code.read_text().strip()
        (asked,) = [word.removeprefix("--property=") for word in options if "property" in word]
        print(values[asked] if "--value" in options else f"{asked}={values[asked]}")
    elif verb == "stop":
        unit.signal(signal.SIGTERM)
        unit.wait(300)
        if unit.state == "exited":
            unit.forget()
    elif verb == "reset-failed":
        if unit.state == "failed":
            unit.forget()
    elif verb == "kill":
        assert options == ["--kill-who=main", "--signal=USR1"]
        unit.signal(signal.SIGUSR1)
    else:
        raise NotImplementedError(verb)
    return 0


def systemd_run(*arguments: str) -> int:
    words = list(arguments)
    options = []
    while words[0].startswith("--"):
        options.append(words.pop(0))
    unit = Unit(Path(os.environ["FAKE_HOME"]))
    if unit.state != "dead":
        print("Failed to start transient service unit: it exists", file=sys.stderr)
        return 1
    assert {"--unit=bert-jax", "--remain-after-exit", "--same-dir"} < set(options)
    prefix = "--setenv="
    unit.start(words, [word.removeprefix(prefix) for word in options if word.startswith(prefix)])
    return 0


def journalctl(*options: str) -> int:
    assert {"--unit=bert-jax", "--output=cat"} <= set(options)
    journal = Unit(Path(os.environ["FAKE_HOME"])).journal
    lines = [word.removeprefix("--lines=") for word in options if word.startswith("--lines=")]
    follow = ["--follow"] if "--follow" in options else []
    return subprocess.call(["tail", f"--lines={(lines or ['+1'])[0]}", *follow, journal])


def uv(*arguments: str) -> int:
    """The Python that runs the tests stands for the one that uv would fetch."""
    if arguments[:2] == ("python", "find"):
        print(sys.executable)
    elif arguments[0] == "venv":
        Path(arguments[-1], "bin").mkdir(parents=True, exist_ok=True)
    elif arguments[:2] == ("pip", "install"):
        assert arguments[-2:] == ("--editable", ".[tpu]")
        home = Path(os.environ["FAKE_HOME"])
        command = os.environ.get("FAKE_BERT_JAX") or (
            f"exec {sys.executable} -m bert_jax $(echo $* | sed s/=tpu/=cpu/) "
            f"--coordinator=127.0.0.1:{os.environ['FAKE_PORT']} --heartbeat-timeout=600 "
            f"--num-processes={WORKERS} --process-id={home.name}"
        )
        verb = Path(".venv/bin/bert-jax")
        verb.write_text(f"#!/bin/sh\nPYTHONPATH=.; export PYTHONPATH\n{command}\n")
        verb.chmod(0o755)
    return 0


def git(*arguments: str) -> int:
    """Archives what is in the working tree, committed or not."""
    path = os.environ["PATH"].partition(":")[2]
    real = shutil.which("git", path=path)
    if arguments[0] != "archive":
        return subprocess.call([real, *arguments])
    (target,) = [word.removeprefix("--output=") for word in arguments if "--output=" in word]
    what = ("bert_jax", "configs", "launch", "setup.py", "setup.cfg", "pyproject.toml", "README.md")
    listed = (real, "ls-files", "-z", "--cached", "--others", "--exclude-standard", *what)
    files = subprocess.run(listed, stdout=subprocess.PIPE, check=True)
    tar = ("tar", "--create", "--gzip", f"--file={target}", "--null", "--files-from=-")
    return subprocess.run(tar, input=files.stdout).returncode


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "gcloud":
        sys.exit(Cloud(Path(os.environ["FAKE_CLOUD"])).gcloud(*arguments))
    sys.exit(globals()[name.replace("-", "_")](*arguments))

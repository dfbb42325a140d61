"""One process at a time, and the others learn which one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from bert_jax.errors import UserError
from bert_jax.locks import locked
from bert_jax.train.workdirs import held

pytestmark = pytest.mark.core

HOLDER = """
import sys
from bert_jax.locks import locked
with locked(sys.argv[1], "the run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds a lock until its input ends."""
    path = tmp_path / "new" / "lock"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield path, process
        process.kill()


def test_the_holder_is_named(other_process):
    path, process = other_process
    name = f"process {process.pid} on {socket.gethostname()}"
    message = f"^the run: in use by {name}; wait for it, or end it$"
    with pytest.raises(UserError, match=message), locked(path, "the run"):
        pass
    assert json.loads(path.read_text())["process"] == process.pid
    process.stdin.close()
    process.wait()
    assert not path.parent.exists()


def test_a_killed_holder_is_followed_at_once(other_process):
    path, process = other_process
    process.kill()
    process.wait()
    with locked(path, "the run"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert list(path.parent.iterdir()) == []


def test_one_waits_for_the_other(other_process):
    path, process = other_process
    (path.parent / "file").touch()
    process.stdin.close()
    with locked(path, "the run", wait=True):
        assert process.wait() == 0


def test_a_file_in_the_place_of_the_folder_stays(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "lock", "the run"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_is_held_by_one_run(tmp_path):
    workdir = epath.Path(tmp_path / "run")
    for _ in range(2):
        message = rf"{workdir}: in use by process {os.getpid()} on"
        with held(workdir), pytest.raises(UserError, match=message), held(workdir):
            pass
    assert not workdir.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no run"), held(epath.Path(tmp_path)):
        pass

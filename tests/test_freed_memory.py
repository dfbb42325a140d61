"""Freed memory stays with the process, unless there is an accelerator or the user chose."""

import platform
import subprocess
import sys

import pytest

from bert_jax import freed_memory

pytestmark = pytest.mark.core

# In which a user may choose.
VARIABLES = (
    *("JAX_PLATFORMS", "GLIBC_TUNABLES"),
    *("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"),
)
# Pages of 4 KiB that are mapped while a thread fills and frees 40 MB twenty times.
PROGRAM = """
import resource, sys, threading
from bert_jax import freed_memory
if sys.argv[1] == "keep":
    freed_memory.keep()
assert freed_memory.is_kept() == (sys.argv[1] == "keep")
def fill():
    for _ in range(20):
        bytearray(b"x") * (40 * 2**20)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
thread = threading.Thread(target=fill)
thread.start()
thread.join()
print(faults() - before)
"""


@pytest.fixture
def chosen(monkeypatch):
    """The options that `keep` sets, in a process without a choice of the user's."""
    chosen = []
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(freed_memory, "_kept", False)

    class Library:
        def mallopt(self, option, value):
            chosen.append((option, value))
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda _: Library())
    monkeypatch.setattr(sys, "platform", "linux")
    return chosen


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_a_thread_finds_its_memory_again(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    faults = {}
    for way in ("keep", "free"):
        command = [sys.executable, "-c", PROGRAM, way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        faults[way] = int(done.stdout)
    pages = 40 * 2**20 // 4096
    assert faults["keep"] < 3 * pages < 15 * pages < faults["free"]


@pytest.mark.parametrize(
    ("variables", "device", "kept"),
    [
        ({}, "null", True),
        ({"JAX_PLATFORMS": "cpu"}, "accel0", True),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, "null", True),
        ({}, "accel0", False),
        ({}, "vfio/0", False),
        ({}, "nvidia0", False),
        ({"JAX_PLATFORMS": "tpu,cpu"}, "null", False),
        ({"MALLOC_ARENA_MAX": "4"}, "null", False),
        ({"MALLOC_MMAP_MAX_": "9"}, "null", False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=9"}, "null", False),
    ],
)
def test_where_it_is_kept(variables, device, kept, chosen, monkeypatch, tmp_path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    freed_memory.keep(tmp_path)
    assert freed_memory.is_kept() == kept
    assert dict(chosen) == ({-8: 1, -4: 0, -1: 2**31 - 1} if kept else {})


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems(system, chosen, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", system)
    freed_memory.keep(tmp_path)
    assert not chosen
    assert not freed_memory.is_kept()


def test_a_library_without_options(chosen, monkeypatch, tmp_path):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    freed_memory.keep(tmp_path)
    assert not freed_memory.is_kept()

"""Meshes of sizes, slices and pods, and the rows of a batch that each process holds there."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from bert_jax.errors import UserError
from bert_jax.parallel import cpu, rules
from bert_jax.parallel.hosts import local_rows
from bert_jax.parallel.mesh import AXES, layout_of, make_mesh
from bert_jax.parallel.topologies import topology_devices

pytestmark = pytest.mark.core


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What a mesh looks at, two devices a process and four a slice."""

    id: int
    platform: str = "fake"
    device_kind: str = "fake"

    @property
    def process_index(self):
        return self.id // 2

    @property
    def slice_index(self):
        return self.id // 4


FAKES = [FakeDevice(id) for id in range(8)]


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((), (8, 1, 1)), ((-1, 2, 2), (2, 2, 2)), ((2, -1, 1), (2, 4, 1)), ((1, 1, 8), (1, 1, 8))],
)
def test_sizes(sizes, shape):
    mesh = make_mesh(*sizes)
    assert mesh.shape == dict(zip(AXES, (1, *shape)))
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * 4


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 16, 1), (4, 4, 1), (4, 1, 1)])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(UserError, match=r"config\.mesh \(data=.*\) does not fit 8 devices"):
        make_mesh(*sizes)


def test_data_counts_slices():
    mesh = make_mesh(4, 2, 1, FAKES)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert slices.tolist() == [[[[0], [0]]] * 2, [[[1], [1]]] * 2]
    assert layout_of(mesh) == {"data": 4, "fsdp": 2, "tensor": 1}
    with pytest.raises(UserError, match=r"data=1, which must be a multiple of the 2 slices"):
        make_mesh(1, 8, 1, FAKES)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((8, 1, 1), [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ((2, 2, 2), [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ((2, 1, 4), [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]),
    ],
)
def test_processes_hold_the_rows_of_their_devices(sizes, expected, monkeypatch):
    """A tensor axis over two processes gives both the same rows."""
    sharding = rules.batch_sharding(make_mesh(*sizes, FAKES))
    for process, rows in enumerate(expected):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert local_rows(sharding, 8).tolist() == rows


def test_rows_shared_in_part_are_refused():
    """Six devices, two a process, three a row group: the process in the middle sees both."""
    mesh = Mesh(np.array(FAKES[:6]).reshape(1, 2, 1, 3), AXES)
    with pytest.raises(UserError, match="splits rows across processes unequally"):
        local_rows(rules.batch_sharding(mesh), 8)


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("topology", "slices", "sizes"),
    [
        ("v5e:4x4", 1, (16, 1, 1)),
        ("v5e:4x4", 2, (4, 8, 1)),
        ("v5e:4x4", 2, (8, 2, 2)),
        ("v5p:4x4x4", 1, (8, 8, 1)),
        ("v6e:16x16", 1, (64, 4, 1)),
    ],
)
def test_pods(topology, slices, sizes, monkeypatch):
    """The rows of a pod's host don't follow one another, but together all are held, once."""
    devices = topology_devices(topology, slices)
    mesh = make_mesh(*sizes, devices)
    assert mesh.devices.shape == (slices, sizes[0] // slices, *sizes[1:])
    held = []
    for process in sorted({device.process_index for device in devices}):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        held.append(local_rows(rules.batch_sharding(mesh), 1024).tolist())
    assert len(set(map(len, held))) == 1
    assert sorted(sum({tuple(rows) for rows in held}, ())) == list(range(1024))
    for block in np.split(mesh.devices, slices):
        assert len({getattr(device, "slice_index", 0) for device in block.flat}) == 1


@pytest.mark.parametrize(
    ("libc", "tunables", "kept", "advised"),
    [
        (("glibc", "2.35"), "", False, True),
        (("glibc", "2.35"), "", True, False),
        (("glibc", "2.34"), "", False, False),
        (("glibc", "2.36"), "glibc.malloc.hugetlb=1", False, False),
        (("", ""), "", False, False),
    ],
)
def test_advice_on_a_cpu(libc, tunables, kept, advised, monkeypatch, capsys):
    monkeypatch.setattr("bert_jax.freed_memory._kept", kept)
    monkeypatch.setattr("platform.libc_ver", lambda: libc)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    cpu.advise("float32")
    printed = "training is faster on this CPU after  export GLIBC_TUNABLES=glibc.malloc.hugetlb=1\n"
    assert capsys.readouterr().out == printed * advised


def test_advice_on_bf16(monkeypatch, capsys):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    cpu.advise("bfloat16")
    printed = "training is faster on a CPU with --config.numerics.compute_dtype=float32\n"
    assert capsys.readouterr().out == printed
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    cpu.advise("bfloat16")
    assert not capsys.readouterr().out

"""Slices to compile for, none of which are here."""

import pytest

from bert_jax.errors import UserError
from bert_jax.parallel.topologies import SHAPES, topology_devices
from bert_jax.report.flops import CHIPS, peak_flops_per_device

pytestmark = pytest.mark.core


@pytest.fixture
def libtpu():
    pytest.importorskip("libtpu", reason="the compiler for TPUs is in libtpu")


@pytest.mark.parametrize(
    ("name", "num_slices", "devices", "hosts", "kind"),
    [
        ("v4:2x2x2", 1, 8, 2, "TPU v4"),
        ("v5e:1x1", 1, 1, 1, "TPU v5 lite"),
        ("v5e:2x4", 1, 8, 1, "TPU v5 lite"),
        ("v5e:4x4", 2, 32, 8, "TPU v5 lite"),
        ("v5p:4x4x4", 1, 64, 16, "TPU v5"),
        ("v6e:16x16", 1, 256, 64, "TPU v6 lite"),
        ("tpu7x:2x2x1", 2, 16, 2, "TPU7x"),  # two devices a chip
    ],
)
def test_devices_and_hosts(libtpu, name, num_slices, devices, hosts, kind):
    found = topology_devices(name, num_slices)
    assert len(found) == devices
    assert len({device.process_index for device in found}) == hosts
    assert {device.device_kind for device in found} == {kind}
    assert kind in CHIPS
    assert len({getattr(device, "slice_index", 0) for device in found}) == num_slices


@pytest.mark.parametrize("generation", SHAPES)
def test_largest_slice_of_each_generation_exists(libtpu, generation):
    shape = SHAPES[generation][-1]
    chips = 1
    for size in shape.split("x"):
        chips *= int(size)
    assert len(topology_devices(f"{generation}:{shape}")) in (chips, 2 * chips)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e:3x5", "v5e has v5e:1x1, v5e:2x2, v5e:2x4"),
        ("v5p:4x4", "v5p has v5p:2x2x1"),
        ("v7x:2x2x1", "a generation of v4, v5e, v5p, v6e, tpu7x"),
        ("256", "a generation of"),
    ],
)
def test_wrong_names_are_told_the_right_ones(name, expected):
    with pytest.raises(UserError, match=expected) as error:
        topology_devices(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "megahertz"),  # Jouppi et al. 2023, table 4
    [("TPU v2", 700), ("TPU v3", 940), ("TPU v4", 1050)],
)
def test_clock_rates_that_are_published(kind, megahertz):
    assert CHIPS[kind].clock == pytest.approx(megahertz * 1e6, rel=0.01)


def test_peak_of_other_devices_is_unknown():
    assert peak_flops_per_device("cpu") is None
    assert peak_flops_per_device("TPU7x") == 2307e12 / 2

"""Every layout of a step computes the same, and puts arrays where its name says."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from tiny import VOCAB_SIZE, make_batch, make_masking, make_model

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.fields import build
from bert_jax.model.heads import PARTS
from bert_jax.model.parameters import path_of
from bert_jax.objective.pretraining import PreTraining
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.pretraining.stages import learning_rate, stage_model
from bert_jax.train.program import Program

pytestmark = pytest.mark.core

STEPS = 20
LAYOUTS = {  # data, fsdp, tensor, zero1
    "replicated": (8, 1, 1, False),
    "zero1": (8, 1, 1, True),
    "fsdp": (1, 8, 1, False),
    "mixed": (2, 2, 2, False),
    "mixed_zero1": (2, 2, 2, True),
    "tensor": (1, 1, 8, False),
}


def program(
    data, fsdp, tensor, zero1, *, heads=8, length=48, microbatches=1, **numerics
) -> Program:
    """The state and the step of a small run."""
    model = {"num_layers": 2, "hidden_size": 64, "num_heads": heads, "intermediate_size": 128}
    config = build(
        PretrainConfig,
        {
            "steps": STEPS,
            "model": {"vocab_size": VOCAB_SIZE, "hidden_act": "gelu_tanh", **model},
            "numerics": {"compute_dtype": "float32", **numerics},
            "data": {"batch_size": 16, "max_seq_length": length, "packing": False},
            "optimizer": {"learning_rate": 1e-3, "gradient_accumulation": microbatches},
            "mesh": {"data": data, "fsdp": fsdp, "tensor": tensor, "zero1": zero1},
        },
    )
    mesh = config.mesh.mesh(jax.devices()[: data * fsdp * tensor])
    network = stage_model(config, mesh, config.objective.parts)
    objective = PreTraining(network.graphdef, make_masking(slots=12), seed=0)
    optimizer = config.optimizer.transformation(network.axes)
    return Program(config, objective, network, optimizer, learning_rate(config), mesh)


def jitted(data, fsdp, tensor, zero1, *, length=48, **options):
    """The program of a small run, and a batch on its mesh."""
    batch = make_batch([[9 + n, 15, 12 - n // 2] for n in range(16)], length)
    mesh = make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])
    placed = jax.device_put(batch, rules.batch_sharding(mesh))
    return program(data, fsdp, tensor, zero1, length=length, **options), placed


def run(data, fsdp, tensor, zero1, steps=STEPS, **options):
    """Losses of the steps, and the last state."""
    compiled, batch = jitted(data, fsdp, tensor, zero1, **options)
    state, key = compiled.init(jax.random.key(0)), compiled.dropout_key(0)
    losses = []
    for _ in range(steps):
        state, metrics = compiled.step(state, batch, key)
        # Steps that wait for each other's devices may wait for ever where other programs take the
        # cores, so none is dispatched before the last is done.
        metrics = jax.device_get(metrics)
        losses.append(
            [metrics[f"{head}_loss"] / metrics[f"{head}_count"] for head in ("mlm", "nsp")]
        )
    return np.array(losses), state


@functools.cache
def one_device():
    return run(1, 1, 1, False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_computes_what_one_device_does(layout):
    """Dropout is on: its bits and the masks are the same on every mesh, by threefry."""
    expected, _ = one_device()
    losses, state = run(*LAYOUTS[layout])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[-1, 0] < losses[0, 0] - 0.5
    data, fsdp, tensor, zero1 = LAYOUTS[layout]
    kernel = state.params["bert"]["encoder"]["layers"]["feed_forward"]["intermediate"]["kernel"]
    parts = fsdp * tensor * (data if zero1 else 1)
    assert kernel.addressable_shards[0].data.size == kernel.size // parts


@pytest.mark.parametrize(
    ("layout", "absent", "present"),
    [
        ("replicated", "all-gather", "all-reduce"),
        ("fsdp", "all-to-all", "all-gather"),  # of parameters, never of [16, 48, ...] activations
        ("tensor", "all-gather", "all-reduce"),
    ],
)
def test_what_crosses_the_network(layout, absent, present):
    compiled, batch = jitted(*LAYOUTS[layout])
    text = compiled.lower(batch, 0).compile().as_text()
    kinds = "all-gather|all-reduce|all-to-all"
    moved = {kind: [] for kind in kinds.split("|")}
    for types, kind in re.findall(rf" = (.+?) ({kinds})\(", text):
        shapes = [
            tuple(map(int, re.findall(r"\d+", found))) for found in re.findall(r"\[(.*?)\]", types)
        ]
        moved[kind] += [shape for shape in shapes if math.prod(shape) > 64]  # more than counts
    assert moved[present]
    assert not moved[absent]
    assert not [shape for shape in moved["all-gather"] if 48 in shape], "activations move"


@pytest.fixture
def two_slices(monkeypatch):
    """Meshes of several devices have two slices."""

    def grid(inner, outer, devices, **_):
        return np.reshape(devices, np.multiply(inner, outer))

    monkeypatch.setattr(meshes, "num_slices", lambda devices: min(2, len(devices)))
    monkeypatch.setattr(meshes.mesh_utils, "create_hybrid_device_mesh", grid)


def test_each_slice_has_the_whole_state(two_slices):
    """And parameters are gathered within it: an all-gather has groups of half of the devices."""
    losses, state = run(8, 1, 1, True)
    np.testing.assert_allclose(losses, one_device()[0], rtol=1e-5)
    kernels = state.params["bert"]["encoder"]["layers"]["feed_forward"]["output"]["kernel"]
    assert kernels.sharding.num_devices // 2 == kernels.size // kernels.addressable_data(0).size
    compiled, batch = jitted(*LAYOUTS["zero1"])
    text = compiled.lower(batch, 0).compile().as_text()
    gathers = re.findall(r" all-gather\(.*?replica_groups=(\S+?),? ", text)
    assert gathers
    assert not [groups for groups in gathers if "8]" in groups.partition("<=")[0]]


def test_accumulation_reduces_gradients_once(two_slices):
    """On several slices no loop, over microbatches or over layers, has a collective in it."""
    compiled, batch = jitted(*LAYOUTS["zero1"], microbatches=2)
    text = compiled.lower(batch, 0).compile().as_text()
    before_entry, _, entry = text.partition("\nENTRY ")
    collective = re.compile(r" (?:all-gather|all-reduce|all-to-all|reduce-scatter)\(")
    assert collective.search(entry)
    assert not collective.search(before_entry)


def test_accumulation_computes_the_same_on_every_layout(two_slices):
    """With dropout, whose bits depend on the row of the microbatch and not on its device."""
    expected, _ = run(1, 1, 1, False, microbatches=2, steps=3)
    losses, _ = run(4, 1, 2, True, microbatches=2, steps=3)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("options", [{"scan_layers": False}, {"remat": "dots"}, {"remat": "full"}])
def test_scan_and_remat_change_nothing(options):
    expected, _ = one_device()
    losses, _ = run(1, 2, 2, True, steps=6, **options)
    np.testing.assert_allclose(losses, expected[:6], rtol=1e-5)


def test_layers_that_round_as_int8_compute_the_same_on_every_layout():
    expected, _ = run(1, 1, 1, False, fake_int8=True, steps=3)
    assert not np.allclose(expected, one_device()[0][:3], rtol=1e-5)
    losses, _ = run(2, 2, 2, True, fake_int8=True, steps=3, scan_layers=False)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_the_kernel_with_dropout_drops_the_same_on_every_layout(request):
    """In its interpreter; the kernel's bits depend neither on the mesh nor on how layers run."""
    options = {"attention": "flash", "heads": 4, "length": 128, "microbatches": 2, "steps": 2}
    expected, _ = run(1, 1, 1, False, **options)
    losses, _ = run(2, 2, 2, True, **options, scan_layers=False, remat="none")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    request.getfixturevalue("two_slices")
    losses, _ = run(4, 1, 2, True, **options)  # reduces gradients once, by part of the batch
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_bf16_layouts_agree_loosely():
    """Where gradients are reduced in bf16 only rounding differs."""
    expected, _ = run(1, 1, 1, False, compute_dtype="bfloat16")
    losses, state = run(8, 1, 1, True, compute_dtype="bfloat16")
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}


def test_every_axis_of_a_parameter_has_a_name():
    for options in ({}, {"position_embedding": "sinusoidal"}, {"parts": PARTS, "outputs": 3}):
        model = make_model(**options)
        params = jax.eval_shape(model.init, jax.random.key(0))
        leaves = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        assert leaves.keys() == model.axes.keys()
        for path, leaf in leaves.items():
            assert len(model.axes[path]) == leaf.ndim, path


def test_zero1_splits_almost_everything():
    """Optimizer state too; what stays whole is too small to divide by eight."""
    state = program(8, 1, 1, True).abstract_state
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        held = math.prod(leaf.sharding.shard_shape(leaf.shape))
        assert held == leaf.size // 8 or leaf.size < 512, path

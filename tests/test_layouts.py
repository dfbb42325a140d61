"""Every layout of a step computes the same, and puts arrays where its name says."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from bert import get_config
from tiny import VOCAB_SIZE, make_batch, make_masking

from bert_jax.config import build_config
from bert_jax.objective.pretraining import PreTraining
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.train import build

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


def setting(data, fsdp, tensor, zero1, **model):
    """Config, mesh, model, abstract state and optimizer of a small run."""
    config = get_config("tiny")
    config.steps = STEPS
    config.mesh.update({"data": data, "fsdp": fsdp, "tensor": tensor, "zero1": zero1})
    config.model.update({"vocab_size": VOCAB_SIZE, "hidden_size": 64, "num_heads": 8})
    config.model.update({"intermediate_size": 128, "compute_dtype": "float32"} | model)
    config.data.update({"batch_size": 16, "max_seq_length": 48, "packing": False})
    config.optimizer.learning_rate = 1e-3
    config = build_config(config.to_dict())
    mesh = make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])
    network = build.build_model(config.model, mesh)
    optimizer = build.build_optimizer(config.optimizer)
    state, init = build.abstract_state(network, optimizer, mesh, zero1=zero1)
    return config, mesh, network, optimizer, state, init


def jitted(data, fsdp, tensor, zero1, **model):
    """The step, an abstract state, its `init` and a batch on the mesh."""
    config, mesh, network, optimizer, abstract, init = setting(data, fsdp, tensor, zero1, **model)
    masking = make_masking(max_predictions_per_row=12)
    objective = PreTraining(network.graphdef, masking, seed=0)
    step = build.jit_train_step(config, objective, optimizer, abstract, mesh)
    batch = make_batch([[9 + n, 15, 12 - n // 2] for n in range(16)])
    return step, abstract, init, jax.device_put(batch, rules.batch_sharding(mesh))


def run(data, fsdp, tensor, zero1, steps=STEPS, **model):
    """Losses of the steps, and the last state."""
    step, _, init, batch = jitted(data, fsdp, tensor, zero1, **model)
    state = init(jax.random.key(0))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(
            [metrics[f"{head}_loss"] / metrics[f"{head}_count"] for head in PreTraining.heads]
        )
    return np.array(jax.device_get(losses)), state


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
    step, abstract, _, batch = jitted(*LAYOUTS[layout])
    text = step.lower(abstract, batch).compile().as_text()
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


@pytest.mark.parametrize("options", [{"scan_layers": False}, {"remat": "dots"}, {"remat": "full"}])
def test_scan_and_remat_change_nothing(options):
    expected, _ = one_device()
    losses, _ = run(1, 2, 2, True, steps=6, **options)
    np.testing.assert_allclose(losses, expected[:6], rtol=1e-5)


def test_bf16_layouts_agree_loosely():
    """Where gradients are reduced in bf16 only rounding differs."""
    expected, _ = run(1, 1, 1, False, compute_dtype="bfloat16")
    losses, state = run(8, 1, 1, True, compute_dtype="bfloat16")
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}


def parameters():
    *_, state, _ = setting(1, 1, 1, False)
    return jax.tree_util.tree_leaves_with_path(state.params)


def test_every_parameter_matches_one_rule():
    for path, leaf in parameters():
        names = rules.parameter_axes("/".join(key.key for key in path))
        assert len(names) == leaf.ndim, path
    with pytest.raises(ValueError, match="0 rules match"):
        rules.parameter_axes("bert/unheard_of/kernel")


def test_zero1_splits_almost_everything():
    """Optimizer state too; what stays whole is too small to divide by eight."""
    *_, state, _ = setting(8, 1, 1, True)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        held = math.prod(leaf.sharding.shard_shape(leaf.shape))
        assert held == leaf.size // 8 or leaf.size < 512, path

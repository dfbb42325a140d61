"""Every optimizer against NumPy in float64, and on several meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_model

from bert_jax.fields import build
from bert_jax.model.model import Model
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.train.optimizers import Lamb, Optimizer

pytestmark = pytest.mark.core

LAMB = {"b1": 0.9, "b2": 0.99, "eps": 1e-6, "weight_decay": 0.1, "clip_norm": 0.5}
RATE = 0.01


def optimizer(name: str, model: Model, **changes) -> optax.GradientTransformation:
    """Of this kind, with those of the fields of LAMB above that it has."""
    kind = Optimizer.kind(name, "optimizer.name")
    fields = {k: v for k, v in (LAMB | changes).items() if k in kind.__dataclass_fields__}
    return build(Optimizer, {"name": name, **fields}).transformation(model.axes)


def reference_lamb(params: dict, gradients: list[dict], rate: float) -> dict:
    """Steps of LAMB on a flat dict of single parameters, one at a time, in float64.

    Written from the paper's algorithm 2: moments, bias correction, decay, trust ratio.
    """
    params = {name: value.astype(np.float64) for name, value in params.items()}
    first = dict.fromkeys(params, 0.0)
    second = dict.fromkeys(params, 0.0)
    for step, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradient.values()))
        for name in params:
            g = gradient[name].astype(np.float64) * min(1.0, LAMB["clip_norm"] / norm)
            first[name] = LAMB["b1"] * first[name] + (1 - LAMB["b1"]) * g
            second[name] = LAMB["b2"] * second[name] + (1 - LAMB["b2"]) * g**2
            m = first[name] / (1 - LAMB["b1"] ** step)
            v = second[name] / (1 - LAMB["b2"] ** step)
            update = m / (np.sqrt(v) + LAMB["eps"])
            if not name.endswith(("bias", "scale")):
                update = update + LAMB["weight_decay"] * params[name]
                norms = np.linalg.norm(params[name]), np.linalg.norm(update)
                if norms[0] > 0 and norms[1] > 0:
                    update = update * norms[0] / norms[1]
            params[name] = params[name] - rate * update
    return params


def unstacked(tree: dict) -> dict[str, np.ndarray]:
    """Flat dict with one entry for each parameter of each layer."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]:
        name = "/".join(key.key for key in path)
        if "/layers/" in name:
            flat |= {f"layer {index}: {name}": part for index, part in enumerate(leaf)}
        else:
            flat[name] = np.asarray(leaf)
    return flat


@pytest.fixture(scope="module")
def problem():
    """A model of three layers, its parameters, and the gradients of four steps."""
    model = make_model(num_layers=3)
    params = jax.tree.map(np.array, jax.jit(model.init)(jax.random.key(0)))
    layers = params["bert"]["encoder"]["layers"]
    # Layers of very different sizes, so that a norm over the whole stack would show.
    scales = np.array([0.1, 1.0, 30.0], np.float32)
    layers = jax.tree.map(lambda x: x * scales.reshape(-1, *[1] * (x.ndim - 1)), layers)
    params["bert"]["encoder"]["layers"] = layers
    layers["attention"]["query"]["kernel"][1] = 0.0  # a norm of 0, of one layer
    params["bert"]["pooler"]["kernel"][:] = 0.0  # of the parameter and of its direction
    random = np.random.default_rng(0)

    def gradient():
        tree = jax.tree.map(lambda x: random.normal(0, 0.01, x.shape).astype(np.float32), params)
        tree["bert"]["pooler"]["kernel"][:] = 0.0
        return tree

    return model, params, [gradient() for _ in range(4)]


def train(optimizer, model, params, gradients, layout=None):
    """The parameters after a step for each gradient, on one device or on a mesh of 8."""

    def step(params, state, gradient):
        direction, state = optimizer.update(gradient, state, params)
        return jax.tree.map(lambda p, d: p - RATE * d, params, direction), state

    state = jax.jit(optimizer.init)(params)
    if layout:
        mesh = make_mesh(*layout)
        places = [
            rules.state_shardings(mesh, tree, model.axes, zero1=True) for tree in (params, state)
        ]
        params, state = jax.device_put((params, state), tuple(places))
        step = jax.jit(step, in_shardings=(*places, places[0]), out_shardings=tuple(places))
        assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
    else:
        step = jax.jit(step)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return unstacked(params)


def assert_close(actual: dict, expected: dict, rtol: float):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=rtol, atol=1e-7, err_msg=name)


def test_lamb_is_what_a_loop_over_single_parameters_computes(problem):
    model, params, gradients = problem
    expected = reference_lamb(unstacked(params), [unstacked(g) for g in gradients], RATE)
    lamb = Lamb(**LAMB).transformation(model.axes)
    assert_close(train(lamb, *problem), expected, rtol=2e-5)


def reference_adamw(
    params: dict,
    gradients: list[dict],
    rate: float,
    *,
    corrected: bool = True,
    stable: bool = False,
) -> dict:
    """Steps on a flat dict of single parameters in float64.

    `stable`: algorithm 2 of Wortsman et al.
    """
    params = {name: value.astype(np.float64) for name, value in params.items()}
    first, second = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
    for step, gradient in enumerate(gradients, start=1):
        for name, g in gradient.items():
            g = g.astype(np.float64)
            first[name] = LAMB["b1"] * first[name] + (1 - LAMB["b1"]) * g
            second[name] = LAMB["b2"] * second[name] + (1 - LAMB["b2"]) * g**2
            m = first[name] / ((1 - LAMB["b1"] ** step) if corrected else 1)
            v = second[name] / ((1 - LAMB["b2"] ** step) if corrected else 1)
            update = m / (np.sqrt(v) + LAMB["eps"])
            if stable:
                update /= max(1.0, np.sqrt(np.mean(g**2 / np.maximum(v, LAMB["eps"] ** 2))))
            if not name.endswith(("bias", "scale")):
                update = update + LAMB["weight_decay"] * params[name]
            params[name] = params[name] - rate * update
    return params


def test_stable_adamw_is_what_a_loop_over_single_parameters_computes(problem):
    """The gradients of one layer of some parameters jump, those of its neighbours do not."""
    model, params, gradients = problem
    jump = jax.tree.map(np.copy, gradients[-1])
    jump["bert"]["encoder"]["layers"]["feed_forward"]["output"]["kernel"][1] *= 50.0
    gradients = [*gradients, jump]
    flat = list(map(unstacked, gradients))
    expected = reference_adamw(unstacked(params), flat, RATE, stable=True)
    stable = optimizer("stable_adamw", model, clip_norm=0.0)
    assert_close(train(stable, model, params, gradients), expected, rtol=2e-5)


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Five Newton-Schulz iterations with the coefficients of Jordan et al."""
    x = matrix / (np.linalg.norm(matrix) + 1e-8)
    x = x.T if len(x) > len(x.T) else x
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x if x.shape == matrix.shape else x.T


def reference_muon(params: dict, gradients: list[dict], rate: float) -> dict:
    """Steps on a flat dict of single parameters in float64; the matrices of layers by Muon."""
    params = {name: value.astype(np.float64) for name, value in params.items()}
    first, second = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
    for step, gradient in enumerate(gradients, start=1):
        for name, g in gradient.items():
            g = g.astype(np.float64)
            is_matrix = name.startswith("layer") and name.endswith("kernel")
            b1 = 0.95 if is_matrix else LAMB["b1"]
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = LAMB["b2"] * second[name] + (1 - LAMB["b2"]) * g**2
            if is_matrix:
                ahead = b1 * first[name] / (1 - b1 ** (step + 1)) + (1 - b1) * g / (1 - b1**step)
                update = 0.2 * np.sqrt(max(g.shape)) * orthogonalized(ahead)
            else:
                v = second[name] / (1 - LAMB["b2"] ** step)
                update = first[name] / (1 - b1**step) / (np.sqrt(v) + LAMB["eps"])
            if not name.endswith(("bias", "scale")):
                update = update + LAMB["weight_decay"] * params[name]
            params[name] = params[name] - rate * update
    return params


def test_muon_is_what_a_loop_over_single_parameters_computes(problem):
    model, params, gradients = problem
    expected = reference_muon(unstacked(params), list(map(unstacked, gradients)), RATE)
    muon = optimizer("muon", model, clip_norm=0.0)
    found = train(muon, model, params, gradients)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("corrected", [False, True])
def test_adamw_is_what_a_loop_over_single_parameters_computes(corrected, problem):
    model, params, gradients = problem
    flat = list(map(unstacked, gradients))
    expected = reference_adamw(unstacked(params), flat, RATE, corrected=corrected)
    adamw = optimizer("adamw", model, clip_norm=0.0, bias_correction=corrected)
    assert_close(train(adamw, *problem), expected, rtol=2e-5)


@pytest.mark.parametrize(("value", "norm"), [(0.005, 0.0), (0.005, 0.5), (0.0, 0.5)])
def test_gradients_are_clipped_by_value_and_then_by_norm(value, norm, problem):
    """With momentum, without decay."""
    model, params, gradients = problem
    params = {name: x.astype(np.float64) for name, x in unstacked(params).items()}
    trace = dict.fromkeys(params, 0.0)
    for gradient in map(unstacked, gradients):
        clipped = {
            name: np.clip(g, -value, value) if value else g.astype(np.float64)
            for name, g in gradient.items()
        }
        total = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in clipped.values()))
        for name, g in clipped.items():
            trace[name] = 0.9 * trace[name] + g * (min(1.0, norm / total) if norm else 1.0)
            params[name] = params[name] - RATE * trace[name]
    sgd = optimizer("sgd", model, clip_value=value, clip_norm=norm, weight_decay=0.0)
    assert_close(train(sgd, *problem), params, rtol=2e-5)


def reference_adafactor(params: dict, gradients: list[dict], rate: float) -> dict:
    """Steps on a flat dict of stacked parameters in float64, from algorithms 4 and 5 of the paper.

    Of matrices with two sides of at least 128 it keeps the means of squares by row and by column.
    """
    params = {name: value.astype(np.float64) for name, value in params.items()}
    squares = {}
    for step, gradient in enumerate(gradients, start=1):
        decay = 1 - step**-0.8
        for name, g in gradient.items():
            square = g.astype(np.float64) ** 2 + 1e-30
            last, wide = (
                (np.argsort(g.shape)[-1], np.argsort(g.shape)[-2]) if g.ndim > 1 else (0, 0)
            )
            is_factored = g.ndim > 1 and g.shape[wide] >= 128
            new = [square.mean(axis, keepdims=True) for axis in (last, wide)]
            new = new if is_factored else [square]
            old = squares.get(name, [0.0] * len(new))
            squares[name] = [decay * a + (1 - decay) * b for a, b in zip(old, new)]
            if is_factored:
                rows, columns = squares[name]
                v = rows * columns / rows.mean(wide, keepdims=True)
            else:
                (v,) = squares[name]
            update = g / np.sqrt(v)
            update = update / max(1.0, np.sqrt(np.mean(update**2)))
            update = update * max(1e-3, np.sqrt(np.mean(params[name] ** 2)))
            params[name] = params[name] - rate * update
    return params


@pytest.mark.parametrize("layout", [None, (2, 2, 2)])
def test_adafactor_is_what_a_loop_over_stacks_computes(layout):
    model = make_model(hidden_size=128, intermediate_size=256, num_heads=2)
    params = jax.tree.map(np.array, jax.jit(model.init)(jax.random.key(0)))
    random = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda x: random.normal(0, 0.01, x.shape).astype(np.float32), params)
        for _ in range(3)
    ]

    def flat(tree):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}

    expected = reference_adafactor(flat(params), list(map(flat, gradients)), RATE)
    adafactor = optimizer("adafactor", model, clip_norm=0.0, weight_decay=0.0)
    found = train(adafactor, model, params, gradients, layout)
    for name, values in expected.items():
        layers = enumerate(values) if "/layers/" in name else [(None, values)]
        for index, each in layers:
            key = name if index is None else f"layer {index}: {name}"
            np.testing.assert_allclose(found[key], each, rtol=1e-4, atol=1e-6, err_msg=key)


LAYOUTS = [("lamb", sizes) for sizes in ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4))]
OTHERS = ("adamw", "stable_adamw", "adafactor", "sgd", "muon")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *LAYOUTS,
        *((name, layout) for name in OTHERS for layout in ((2, 2, 2), (1, 8, 1))),
    ],
)
def test_every_layout_takes_the_same_steps(name, layout, problem):
    """Where a parameter is split over devices, its norm is still that of the whole."""
    transformation = optimizer(name, problem[0])
    split = train(transformation, *problem, layout)
    assert_close(split, train(transformation, *problem), rtol=1e-5)


def test_moments_of_adafactor_are_small_and_have_a_place():
    """Its factored moments have other axes than their parameters."""
    model = make_model(hidden_size=128, intermediate_size=256, num_heads=2)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(optimizer("adafactor", model).init, params)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state, params)]
    assert sizes[0] < sizes[1] / 2
    mesh = make_mesh(2, 2, 2)
    shardings = rules.state_shardings(mesh, state, model.axes, zero1=True)
    jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), state, shardings)


@pytest.mark.parametrize("name", ["adamw", "stable_adamw", "muon", "lamb", "adafactor", "sgd"])
def test_directions_point_downhill_and_decay_towards_zero(name):
    """The step subtracts what an optimizer returns."""
    params = {"dense": {"kernel": jnp.full((4, 4), 2.0), "bias": jnp.full(4, 2.0)}}
    axes = {"dense/kernel": ("embed", "hidden"), "dense/bias": ("hidden",)}
    model = make_model()._replace(axes=axes)
    gradient = jax.tree.map(jnp.ones_like, params)
    direction = {}
    for decay in (0.0, 0.5):
        chosen = optimizer(name, model, weight_decay=decay, clip_norm=0.0)
        direction[decay], _ = chosen.update(gradient, chosen.init(params), params)
    everything = optimizer(name, model, weight_decay=0.5, clip_norm=0.0, decay_all=True)
    biases = everything.update(gradient, everything.init(params), params)[0]["dense"]["bias"]
    if name != "lamb":  # which scales what decays
        np.testing.assert_allclose(biases, direction[0.0]["dense"]["bias"] + 1.0, rtol=1e-6)
    jax.tree.map(lambda d: np.testing.assert_array_less(0.0, d), direction[0.0])
    np.testing.assert_array_equal(direction[0.0]["dense"]["bias"], direction[0.5]["dense"]["bias"])
    if name != "lamb":  # whose ratio keeps the length of the direction
        more = direction[0.5]["dense"]["kernel"] - direction[0.0]["dense"]["kernel"]
        np.testing.assert_allclose(more, 0.5 * 2.0, rtol=1e-6)

"""Low-rank adaptation: what is trained, what it computes, and that a run leaves a plain model."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from test_finetune import recipe
from tiny import ARCHITECTURE, NUMERICS, make_batch, make_model

from bert_jax.api.finetune import finetune
from bert_jax.errors import UserError
from bert_jax.interop.workdir import read_workdir, write_workdir
from bert_jax.model.heads import SEQUENCE_CLASSIFIER
from bert_jax.model.lora import A, B, LowRank, frozen_params, model_with_factors
from bert_jax.model.parameters import joined
from bert_jax.objective.finetuning import FineTuning
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import Layout, make_mesh
from bert_jax.parallel.parallelism import parallelism
from bert_jax.train.program import loader

PARTS = ("pooler", "sequence_classifier")
LORA = LowRank(2, 6.0, ("attention/query", "feed_forward/output"))
LEARNS = {"lora_rank": 2, "lora_matrices": (), "optimizer.learning_rate": 3e-3, "epochs": 2.0}


def with_factors(mesh, numerics=NUMERICS):
    return model_with_factors(
        ARCHITECTURE, numerics, parallelism(mesh, numerics), parts=PARTS, outputs=2, lora=LORA
    )


def loss_and_gradients(structure, mesh, trained, frozen):
    objective = FineTuning(structure.graphdef, SEQUENCE_CLASSIFIER)
    rows = make_batch([[20, 9], [30], [48], [12, 12, 12]])
    rows["labels"] = rows["next_sentence_label"]
    load = loader(mesh, structure.axes, NUMERICS, copies=False)

    def loss(trained, frozen, rows):
        return objective.sums(joined(load(trained), load(frozen)), rows)["task_loss"]

    trained, frozen = (rules.put_params(each, mesh, structure.axes) for each in (trained, frozen))
    computed = jax.jit(jax.value_and_grad(loss))(trained, frozen, rules.put_batch(rows, mesh))
    return jax.device_get(computed)


@pytest.mark.parametrize("scan", [True, False])
def test_loss_and_gradients_are_those_of_the_merged_matrices(scan):
    """dA = f dW B^T and dB = f A^T dW, on one device and on eight that share all arrays."""
    numerics = dataclasses.replace(NUMERICS, scan_layers=scan)
    one = make_mesh(devices=jax.devices()[:1])
    plain = make_model(parts=PARTS, outputs=2, scan_layers=scan)
    params = jax.device_get(plain.init(jax.random.key(0)))
    trained = flatten_dict(jax.device_get(with_factors(one).init(jax.random.key(1))))
    random = np.random.default_rng(0)
    for path in trained:
        if path[-1] == B:
            assert not trained[path].any()
            trained[path] = random.normal(0, 0.1, trained[path].shape).astype(np.float32)
    names = {"/".join(path) for path in trained}
    stack = "bert/encoder/layers"
    factors = {f"{stack}/{name}/{x}" for name in LORA.matrices for x in (A, B)}
    heads = {f"{part}/{x}" for part in ("bert/pooler", PARTS[1]) for x in ("kernel", "bias")}
    assert names == factors | heads
    trained, frozen = unflatten_dict(trained), frozen_params(params)

    merged = LORA.merged(joined(trained, frozen))
    expected, wanted = loss_and_gradients(plain, one, merged, {})
    meshes = (one, Layout(data=2, fsdp=2, tensor=2).mesh())
    for mesh in meshes:
        found, gradients = loss_and_gradients(with_factors(mesh, numerics), mesh, trained, frozen)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for name in LORA.matrices:
            part, matrix = name.split("/")
            of, values, changes = (
                tree["bert"]["encoder"]["layers"][part][matrix]
                for tree in (wanted, trained, gradients)
            )
            f, change = LORA.alpha / LORA.rank, of["kernel"]
            for factor, by_hand in (
                (A, f * change @ values[B].swapaxes(1, 2)),
                (B, f * values[A].swapaxes(1, 2) @ change),
            ):
                np.testing.assert_allclose(changes[factor], by_hand, rtol=1e-4, atol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            gradients[PARTS[1]],
            wanted[PARTS[1]],
        )


def test_a_run_adapts_matrices_and_leaves_a_plain_model(model, tmp_path):
    """Their changes have the rank; what is not a matrix of a layer stays, and it learns."""
    config = recipe("classification", model, tmp_path, **LEARNS)
    run = epath.Path(tmp_path / "run")
    assert finetune(config, run)
    with pytest.raises(UserError, match=re.escape(f"use its best model, {run}/best")):
        read_workdir(run)
    before, after = (
        flatten_dict(read_workdir(each).params["bert"], sep="/") for each in (model, run / "best")
    )
    assert {*after} == {*before}
    for path, values in after.items():
        change = values - before[path]
        if path.startswith("encoder/layers/") and path.endswith("/kernel"):
            assert np.linalg.matrix_rank(change, tol=1e-5).tolist() == [2, 2]
        elif not path.startswith("pooler/"):
            assert not change.any(), path

    # Another start reads the weights again; they must be the same.
    results = (run / "results.json").read_text()
    assert finetune(config, run)
    assert (run / "results.json").read_text() == results
    other = read_workdir(model)
    other.params["bert"]["embeddings"]["norm"]["bias"] += 1
    write_workdir(tmp_path / "other", other)
    moved = dataclasses.replace(config, init_from=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"frozen_weights: '[0-9a-f]{64}' -> '"):
        finetune(moved, run)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": True}, "config.freeze=True does not go with config.lora_rank=4"),
        ({"reinit_layers": 1}, "config.reinit_layers=1 does not go with config.lora_rank=4"),
        ({"teacher": "x"}, "config.teacher=x does not go with config.lora_rank=4"),
        ({"numerics.fake_int8": True}, "config.numerics.fake_int8=True does not go with"),
        ({"random_weights": True}, "config.random_weights=True does not go with"),
        (
            {"lora_matrices": ("query",)},
            "config.lora_matrices: 'query' is no matrix of a layer: use some of attention/key, "
            "attention/output, attention/query, attention/value, feed_forward/intermediate, "
            "feed_forward/output, or () for all",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields, message, model, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        finetune(recipe("classification", model, tmp_path, lora_rank=4, **fields), tmp_path / "run")

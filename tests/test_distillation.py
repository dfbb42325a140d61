"""Distillation, against its formulas, and from a teacher to a model that is used without it."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured import configured
from etils import epath
from portables import make_portable
from scipy.special import erf, expit, log_softmax, softmax
from test_training import assert_same_run
from tiny import ARCHITECTURE, NUMERICS, VOCAB_SIZE, make_batch, make_masking

import bert_jax
from bert_jax.__main__ import main
from bert_jax.api.plan import planned_step
from bert_jax.api.pretrain import pretrain
from bert_jax.data.tokenizer_json import load_tokenizer
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.interop.initial import follow_weights, initial_params, without_parts
from bert_jax.interop.workdir import read_workdir, write_workdir
from bert_jax.model.architecture import Parallel
from bert_jax.model.heads import (
    ANSWER_SPAN,
    MULTI_LABEL_CLASSIFIER,
    MULTIPLE_CHOICE,
    SEQUENCE_CLASSIFIER,
    SEQUENCE_REGRESSION,
    TOKEN_CLASSIFIER,
)
from bert_jax.model.model import build_model
from bert_jax.model.teacher import TEACHER
from bert_jax.objective.finetuning import FineTuning
from bert_jax.objective.protocol import Objective
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import parallelism
from bert_jax.pretraining.stages import flops_per_row
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train.checkpoints import Checkpoints

PACKED = make_batch([[24, 10], [10, 10, 10], [24, 24], [10], [24, 10], [24], [10, 24], [10]])
ALONE = make_batch([[int(n)] for row in PACKED["segment_ids"] for n in np.bincount(row)[1:]])
STUDENT = dataclasses.replace(ARCHITECTURE, num_layers=1)
TEACHING = dataclasses.replace(ARCHITECTURE, hidden_size=48)
OBJECTIVES = {
    "all": {
        "mlm_weight": 1.0,
        "logits_weight": 2.0,
        "temperature": 3.0,
        "hidden_weight": 3.0,
        "hidden_loss": "mse",
        "hidden_layers": (0, 2),
        "relations_weight": 4.0,
        "relation_layer": 1,
        "relation_heads": 8,
        "vectors_weight": 5.0,
    },
    "states": {"mlm_weight": 0.0, "logits_weight": 0.0, "relations_weight": 0.5},
}


def objective_of(name):
    return build(Objective, {"name": "distillation", "teacher": "somewhere", **OBJECTIVES[name]})


@functools.cache
def bound(name, parallel=None):
    """The objective of a model with its teacher, the parameters of both."""
    objective = objective_of(name)
    model = objective.model(STUDENT, NUMERICS, parallel or Parallel(), objective.parts, TEACHING)
    teacher = build_model(TEACHING, NUMERICS, parts=objective.teacher_parts)
    inits = (
        jax.eval_shape(model.init, jax.random.key(0)),
        jax.eval_shape(teacher.init, jax.random.key(0)),
    )
    random = np.random.default_rng(0)
    params, theirs = jax.tree.map(
        lambda x: random.normal(size=x.shape).astype(np.float32) * 0.2, inits
    )
    return objective.bind(model.graphdef, make_masking(slots=16), 3), params, {TEACHER: theirs}


@functools.cache
def losses_and_gradients(name, layout=None):
    mesh = layout and make_mesh(*layout)
    objective, params, teacher = bound(name, mesh and parallelism(mesh, NUMERICS))
    batch = jax.device_put(PACKED, rules.batch_sharding(mesh)) if mesh else ALONE

    @jax.jit
    def compute(params, teacher, batch):
        prepared = objective.prepare(batch, jnp.int32(0))
        counts = {head: jnp.sum(w) for head, w in objective.weights(prepared).items()}

        def loss(params):
            sums = objective.sums(params | teacher, prepared)
            means = {head: sums[f"{head}_loss"] / counts[head] for head in counts}
            return sum(objective.factors[head] * x for head, x in means.items()), sums

        (total, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return total, sums, gradients, prepared

    return jax.device_get(compute(params, teacher, batch))


def norm(x, p):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def run(bert, ids, types):
    """States of the embeddings and of each layer, and queries, keys and values of each layer."""
    tables = bert["embeddings"]
    x = tables["word"]["embedding"][ids] + tables["token_type"]["embedding"][types]
    x = norm(x + tables["position"]["embedding"][: len(ids)], tables["norm"])
    states, projections, layers = [x], [], bert["encoder"]["layers"]
    for layer in range(len(layers["attention_norm"]["scale"])):
        p = jax.tree.map(lambda x, layer=layer: x[layer], layers)
        projections.append([dense(x, p["attention"][n]) for n in ("query", "key", "value")])
        q, k, v = (y.reshape(len(ids), 4, -1).swapaxes(0, 1) for y in projections[-1])
        shares = softmax(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), axis=-1)
        mixed = (shares @ v).swapaxes(0, 1).reshape(x.shape)
        x = norm(x + dense(mixed, p["attention"]["output"]), p["attention_norm"])
        inner = gelu(dense(x, p["feed_forward"]["intermediate"]))
        x = norm(x + dense(inner, p["feed_forward"]["output"]), p["feed_forward_norm"])
        states.append(x)
    return states, projections


def words(params, states):
    head, table = params["masked_lm"], params["bert"]["embeddings"]["word"]["embedding"]
    logits = norm(gelu(dense(states, head["dense"])), head["norm"]) @ table.T + head["bias"]
    return logits[:, :VOCAB_SIZE]


def kl(targets, logits):
    return np.sum(softmax(targets, -1) * (log_softmax(targets, -1) - log_softmax(logits, -1)), -1)


def cosine(x, y):
    return np.sum(x * y, -1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def relations(x, heads):
    x = x.reshape(len(x), heads, -1).swapaxes(0, 1)
    return x @ x.swapaxes(1, 2) / np.sqrt(x.shape[-1])


def plain_loss(name, params, teacher, prepared):
    """The loss as the papers write it, one example after another, in float64."""
    options = vars(objective_of(name))
    sums, counts = (
        dict.fromkeys(objective_of(name).factors, 0.0),
        dict.fromkeys(objective_of(name).factors, 0),
    )

    def add(head, losses):
        sums[head] += np.sum(losses)
        counts[head] += np.size(losses)

    for row in range(len(prepared["input_ids"])):
        n = int((prepared["segment_ids"][row] > 0).sum())
        read = prepared["input_ids"][row, :n], prepared["token_type_ids"][row, :n]
        ours, own = run(params["bert"], *read)
        theirs, others = run(teacher["bert"], *read)
        if "mlm" in sums:
            used = prepared["masked_lm_weights"][row] > 0
            places = prepared["masked_lm_positions"][row][used]
            ids = prepared["masked_lm_ids"][row][used]
            scores, targets = words(params, ours[-1][places]), words(teacher, theirs[-1][places])
            add("mlm", -log_softmax(scores, -1)[np.arange(len(ids)), ids])
            t = options["temperature"]
            add("logits", t**2 * kl(targets / t, scores / t))
        projected = [dense(x, params["projection"]) for x in ours]
        if name == "all":
            pairs = zip(projected, (theirs[0], theirs[2]), strict=True)
            add("hidden", sum(((x - y) ** 2).mean(-1) for x, y in pairs))
            add("vectors", 1 - cosine(projected[-1].mean(0), theirs[-1].mean(0)))
        else:
            add("hidden", 1 - cosine(projected[-1], theirs[-1]))
        layer, heads = (1, 8) if name == "all" else (2, 4)
        nats = [
            kl(relations(y, heads), relations(x, heads)).mean(0)
            for x, y in zip(own[-1], others[layer - 1])
        ]
        add("relations", sum(nats))
    factors = objective_of(name).factors
    return sum(factors[head] * sums[head] / counts[head] for head in sums)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_are_those_of_the_formulas(name):
    total, sums, gradients, prepared = losses_and_gradients(name)
    _, params, teacher = jax.tree.map(lambda x: x.astype(np.float64), (None, *bound(name)[1:]))
    loss = functools.partial(plain_loss, name, teacher=teacher[TEACHER], prepared=prepared)
    assert total == pytest.approx(loss(params), rel=1e-5)
    assert {x.removesuffix("_loss") for x in sums if x.endswith("_loss")} == {
        *objective_of(name).factors
    }
    random = np.random.default_rng(1)
    way = jax.tree.map(lambda x: random.normal(size=x.shape), params)
    ends = [loss(jax.tree.map(lambda p, v, s=s: p + s * v, params, way)) for s in (1e-5, -1e-5)]
    found = sum(jax.tree.leaves(jax.tree.map(lambda g, v: np.sum(g * v), gradients, way)))
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_packed_rows_and_layouts_compute_the_same():
    alone, packed = losses_and_gradients("all"), losses_and_gradients("all", (2, 2, 2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), alone[:3], packed[:3]
    )


def test_outputs_of_a_task_are_compared_as_the_formulas_say():
    random = np.random.default_rng(0)
    t = 2.0
    batch = {"segment_ids": np.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2]])}
    weights = np.array([[1.0, 0.0], [1.0, 1.0]])

    def found(head, logits, targets, labels, weights=weights):
        given = (jnp.asarray(x, jnp.float32) for x in (logits, targets))
        sums = head.soft_sums(*given, labels, jnp.asarray(weights, jnp.float32), batch, t)
        assert sums["count"] == weights.sum()
        return float(sums["loss"])

    x, y = random.normal(size=(2, 2, 6, 3))
    tokens = random.integers(0, 2, (2, 6)).astype(np.float64)
    expected = np.sum(t**2 * kl(y / t, x / t) * tokens)
    assert found(TOKEN_CLASSIFIER, x, y, None, tokens) == pytest.approx(expected, rel=1e-5)

    x, y = random.normal(size=(2, 2, 2, 3))
    p, q = (np.stack([expit(z / t), expit(-z / t)]) for z in (y, x))
    expected = np.sum(t**2 * np.sum(p * np.log(p / q), 0).mean(-1) * weights)
    assert found(MULTI_LABEL_CLASSIFIER, x, y, None) == pytest.approx(expected, rel=1e-5)
    expected = np.sum((x - y)[..., 0] ** 2 * weights)
    assert found(SEQUENCE_REGRESSION, x, y, None) == pytest.approx(expected, rel=1e-5)

    x, y = random.normal(size=(2, 2, 6, 2))
    labels = np.zeros((2, 2, 2), np.int32)
    expected = sum(
        t**2 * kl(y[row, own, end] / t, x[row, own, end] / t) / 2 * weights[row, example]
        for row in range(2)
        for example in range(2)
        for own in [batch["segment_ids"][row] == example + 1]
        for end in range(2)
    )
    assert found(ANSWER_SPAN, x, y, labels) == pytest.approx(expected, rel=1e-5)

    x, y = random.normal(size=(2, 1, 4, 1))
    labels = np.array([[[7, 1], [7, 0], [9, 0], [9, 1]]])
    right = np.array([[1.0, 0.0, 0.0, 1.0]])
    expected = sum(t**2 * kl(y[0, i, 0] / t, x[0, i, 0] / t) for i in (slice(2), slice(2, 4)))
    assert found(MULTIPLE_CHOICE, x, y, labels, right) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_labels_examples_that_have_no_label():
    batch = {"segment_ids": np.array([[1, 1, 2, 2], [1, 1, 1, 0]])}
    batch |= {"cls_positions": np.zeros((2, 3)), "labels": jnp.array([[1, -1, -1], [-1, -1, -1]])}
    labelled = FineTuning(None, SEQUENCE_CLASSIFIER).weights(batch)["task"]
    np.testing.assert_array_equal(labelled, [[1, 0, 0], [0, 0, 0]])
    found = FineTuning(None, SEQUENCE_CLASSIFIER, teacher_weight=0.5).weights(batch)
    np.testing.assert_array_equal(found["task"], labelled)
    np.testing.assert_array_equal(found["soft"], [[1, 1, 0], [1, 0, 0]])


FIELDS = {
    "steps": 4,
    "log_every": 1,
    "eval_every": 4,
    "eval_batches": 1,
    "checkpoint_every": 2,
    "keep_checkpoints": 2,
    "model.vocab_size": 1000,
    "model.num_layers": 1,
    "model.hidden_size": 16,
    "model.num_heads": 2,
    "model.intermediate_size": 32,
    "model.max_position_embeddings": 32,
    "numerics.compute_dtype": "float32",
    "numerics.remat": "none",
    "data.batch_size": 16,
    "data.max_seq_length": 32,
    "data.pairs": "none",
    "optimizer.warmup_steps": 1,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "mesh.zero1": True,
    "objective": "distillation",
    "objective.relations_weight": 1.0,
    "objective.relation_heads": 4,
    "objective.vectors_weight": 1.0,
}


@pytest.fixture(scope="module")
def teacher(sotu_store, tmp_path_factory):
    """A converted directory: two layers, a pooler that is not read, and all its weights random."""
    path = epath.Path(tmp_path_factory.mktemp("teacher") / "model")
    sizes = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 64}
    tokenizer = load_tokenizer(epath.Path(sotu_store))
    write_workdir(path, make_portable(tokenizer, ("pooler", "masked_lm"), **sizes))
    return path


@pytest.fixture(scope="module")
def distilled(sotu_store, teacher, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("distilled") / "run"
    changes = {"data.store": sotu_store, "objective.teacher": teacher}
    config = configured(**FIELDS, **changes)
    assert pretrain(config, epath.Path(workdir))
    return workdir, config


def with_teacher(config, path):
    return dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, teacher=str(path))
    )


def test_a_run_resumes_bit_for_bit_with_the_same_teacher(distilled, teacher, tmp_path):
    """The teacher may move, but not change; no checkpoint has it."""
    workdir, config = distilled
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert {*checkpoints.params_tree(4)} == {"bert", "masked_lm", "projection"}
    again, moved, other = tmp_path / "again", tmp_path / "moved", epath.Path(tmp_path / "other")
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "4")
    model = read_workdir(teacher)
    write_workdir(other, model._replace(params=jax.tree.map(lambda x: x + 1, model.params)))
    with pytest.raises(UserError, match=r"teacher_weights: '[0-9a-f]{64}' -> '"):
        pretrain(with_teacher(config, other), epath.Path(again))
    shutil.copytree(teacher, moved)
    assert pretrain(with_teacher(config, moved), epath.Path(again))
    assert_same_run(workdir, again, 4)


def test_what_a_run_writes(distilled, capsys):
    workdir, _ = distilled
    heldout = [line for line in read_metrics(workdir) if line["split"] == "heldout"][-1]
    factors = {"mlm": 2, "logits": 5, "hidden": 1, "relations": 1, "vectors": 1}
    parts = [factor * heldout[f"{head}_loss"] for head, factor in factors.items()]
    assert heldout["loss"] == pytest.approx(sum(parts))
    assert main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["heldout"]
    for head in factors:
        assert scores[f"{head}_loss"] == pytest.approx(heldout[f"{head}_loss"], rel=1e-4)
    model = bert_jax.load(workdir)
    assert model.encode(["of the union"]).shape == (1, 16)
    assert len(model.fill_mask(["the [MASK] of"], top_k=3)[0][0]) == 3


def test_a_plan_has_the_teacher(distilled, teacher):
    config = distilled[1]
    mesh = config.mesh.mesh()
    step = planned_step(config, mesh)
    model = read_workdir(teacher)
    found = {TEACHER: without_parts(model.params, ["pooler"])}
    same = jax.tree.map(lambda planned, given: planned.shape == given.shape, step.frozen, found)
    assert all(jax.tree.leaves(same))
    kernel = step.frozen[TEACHER]["bert"]["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 16)
    student, both = flops_per_row(config), flops_per_row(config, model.architecture)
    whole = flops_per_row(dataclasses.replace(config, model=model.architecture))
    assert both == pytest.approx(student + whole / 3)


def test_a_student_starts_from_chosen_layers(sotu_store, teacher):
    tokenizer = load_tokenizer(epath.Path(sotu_store))
    flags = {"data.store": sotu_store, "objective.teacher": teacher, "init_from": teacher}
    config, said = follow_weights(configured(**FIELDS, **flags, init_layers=(2,)), ())
    assert "num_layers=1" not in said[0]  # as it was
    assert (config.model.num_layers, config.model.hidden_size) == (1, 32)
    source = read_workdir(teacher).params
    params, _ = initial_params(config, tokenizer, config.objective.parts)
    second = jax.tree.map(lambda x: x[1:], source["bert"]["encoder"]["layers"])
    jax.tree.map(np.testing.assert_array_equal, params["bert"]["encoder"]["layers"], second)
    jax.tree.map(np.testing.assert_array_equal, params["masked_lm"], source["masked_lm"])
    config = dataclasses.replace(config, init_layers=(3,))
    with pytest.raises(UserError, match=r"init_layers=\(3,\): .* no layer 3, only 1 to 2"):
        initial_params(config, tokenizer, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ""}, r"config\.objective\.teacher is empty"),
        ({"teacher": "nowhere"}, r"config\.objective\.teacher=nowhere: nowhere: no model there"),
        ({"hidden_layers": (0, 1, 2)}, r"more layers than the model, .* are 2"),
        ({"hidden_layers": (3,)}, r"hidden_layers=\(3,\): the teacher has no layer 3"),
        ({"relation_layer": 3}, r"relation_layer=3: the teacher has 2 layers"),
        ({"relation_heads": 3}, r"relation_heads=3 does not divide the 16 features of the model"),
        ({"temperature": 0.0}, r"objective\.temperature must be positive"),
        (
            dict.fromkeys(("mlm_weight", "logits_weight", "hidden_weight", "relations_weight"), 0.0)
            | {"vectors_weight": 0.0},
            r"config\.objective: all weights are 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, sotu_store, teacher, tmp_path):
    fields = FIELDS | {"data.store": sotu_store, "objective.teacher": teacher}
    fields |= {f"objective.{name}": value for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        pretrain(configured(**fields), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_teacher_must_read_the_same_words_and_predict_them(sotu_store, teacher, tmp_path):
    model, path = read_workdir(teacher), epath.Path(tmp_path / "teacher")
    fields = FIELDS | {"data.store": sotu_store, "objective.teacher": path}
    alone = {name: params for name, params in model.params.items() if name == "bert"}
    write_workdir(path, model._replace(params=alone))
    with pytest.raises(UserError, match=r"logits_weight=5\.0, but .* has no masked_lm: set it to"):
        pretrain(configured(**fields), epath.Path(tmp_path / "run"))
    longer = {"data.max_seq_length": 256, "model.max_position_embeddings": 256}
    with pytest.raises(UserError, match="has 128 positions, fewer than the 256 of max_seq"):
        pretrain(configured(**fields | longer), epath.Path(tmp_path / "run"))
    shutil.rmtree(path)
    write_workdir(path, make_portable(WordPiece((*SPECIAL_TOKENS, "a"), lowercase=True), ()))
    with pytest.raises(UserError, match=r"its vocabulary \(.*\) is not that of the model that"):
        pretrain(configured(**fields), epath.Path(tmp_path / "run"))

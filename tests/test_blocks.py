"""The blocks of encoders since BERT compute the formulas of their papers."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_model import assert_trees_close, losses_and_gradients, objective_and_params
from tiny import ARCHITECTURE, NUMERICS, make_batch, make_model

import bert_jax
from bert_jax.__main__ import main
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.model import attention as attention_module
from bert_jax.model.architecture import Architecture
from bert_jax.model.attention import (
    Distances,
    Reach,
    attention,
    attention_probabilities,
    splash_attention,
)
from bert_jax.model.bert import LayerKind, repetition
from bert_jax.model.positions import Alibi, Relative
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import parallelism

pytestmark = pytest.mark.core

NO_BIASES = {"attention_bias": False, "feed_forward_bias": False, "head_bias": False}
PRE_NORM = {"norm_position": "pre", "final_norm": True, "type_vocab_size": 0}
LINEAGES = {
    "modernbert": {
        **NO_BIASES,
        **PRE_NORM,
        "num_layers": 6,
        "norm_bias": False,
        "first_norm": False,
        "feed_forward": "glu",
        "position_embedding": {"name": "rope", "theta": 160_000.0, "local_theta": 10_000.0},
        "global_every": 3,
        "local_window": 6,
        "pooler": "transform",
        "scaled_output_init": True,
    },
    "neobert": {
        **NO_BIASES,
        **PRE_NORM,
        "norm": "rms_norm",
        "embedding_norm": False,
        "feed_forward": "glu",
        "hidden_act": "silu",
        "position_embedding": "rope",
        "tied_decoder": False,
        "head_transform": False,
    },
    "mosaicbert": {"feed_forward": "glu", "position_embedding": "alibi", "num_heads": 4},
    "crammed": {
        **NO_BIASES,
        **PRE_NORM,
        "feed_forward": "glu",
        "position_embedding": "sinusoidal",
        "head_transform": False,
    },
    "sub_norm": {
        **PRE_NORM,
        "norm_scale": False,
        "norm_bias": False,
        "inner_norm": True,
        "feed_forward_bias": False,
        "feed_forward": "glu",
        "hidden_act": "gelu_tanh",
    },
    "gptbert": {
        **PRE_NORM,
        "norm_scale": False,
        "norm_bias": False,
        "layer_norm_eps": 1e-5,
        "inner_norm": True,
        "feed_forward_bias": False,
        "feed_forward": "glu",
        "hidden_act": "gelu_tanh",
        "position_embedding": {"name": "relative", "buckets": 8, "max_distance": 18},
        "value_gate": True,
        "layer_mixing": True,
        "depth_scaled_init": True,
    },
}

# Distances of more tokens than half of the 32 buckets, and their buckets.
FAR_BUCKETS = {
    16: 16,
    17: 17,
    20: 17,
    21: 18,
    25: 18,
    26: 19,
    100: 24,
    101: 24,
    405: 30,
    406: 31,
    510: 31,
    511: 31,
    -17: -17,
    -101: -24,
    -511: -31,
}

erf = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


class Reference:
    """One example through the encoder, in float64, written from the formulas."""

    def __init__(self, params, fields):
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        self.fields = fields

    def norm(self, x, params):
        if self.fields.norm == "rms_norm":
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.fields.layer_norm_eps)
        else:
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.fields.layer_norm_eps)
        return x * params.get("scale", 1) + params.get("bias", 0)

    def dense(self, x, params):
        return x @ params["kernel"] + params.get("bias", 0)

    def attention(self, x, params, layer):
        length, heads = len(x), self.fields.num_heads
        is_local = layer % self.fields.global_every != 0
        query, key, value = (
            self.dense(x, params[name]).reshape(length, heads, -1)
            for name in ("query", "key", "value")
        )
        encoding = self.fields.position_embedding
        size = query.shape[-1]
        if encoding.called() == "relative":
            table = self.params["bert"]["embeddings"]["position"]
            vectors = self.norm(table["embedding"], table["norm"])
            self.vectors = [
                self.dense(vectors, params[name]).reshape(-1, heads, size)
                for name in ("query", "key")
            ]
        out = np.zeros((length, heads, size))
        for head in range(heads):
            for i in range(length):
                scores = np.full(length, -np.inf)
                for j in range(length):
                    if is_local and abs(i - j) > self.fields.local_window // 2:
                        continue
                    scores[j] = self.score(query[i, head], key[j, head], i, j, is_local, head)
                    if encoding.called() == "alibi":
                        scores[j] -= 2 ** (-8 * (head + 1) / heads) * abs(i - j)
                weights = np.exp(scores - scores.max())
                out[i, head] = (weights / weights.sum()) @ value[:, head]
        out = out.reshape(length, -1)
        if self.fields.value_gate:
            out = out * ACTIVATIONS["gelu"](self.dense(x, params["gate"]))
        out = self.norm(out, params.get("norm", {})) if self.fields.inner_norm else out
        return self.dense(out, params["output"])

    def score(self, query, key, i, j, is_local, head):
        encoding = self.fields.position_embedding
        if encoding.called() == "relative":
            bucket = bucket_of(i - j, encoding.buckets, encoding.max_distance)
            of_query, of_key = (vectors[bucket, head] for vectors in self.vectors)
            return (query @ key + query @ of_key + of_query @ key) / np.sqrt(3 * len(query))
        if encoding.called() != "rope":
            return query @ key / np.sqrt(len(query))
        # A pair of features is one complex number; a position turns it by an angle.
        theta = encoding.local_theta if is_local and encoding.local_theta else encoding.theta
        half = len(query) // 2
        rates = theta ** (-2 * np.arange(half) / len(query))
        query = (query[:half] + 1j * query[half:]) * np.exp(1j * i * rates)
        key = (key[:half] + 1j * key[half:]) * np.exp(1j * j * rates)
        return (query @ key.conj()).real / np.sqrt(2 * half)

    def feed_forward(self, x, params):
        inner = ACTIVATIONS[self.fields.hidden_act](self.dense(x, params["intermediate"]))
        if self.fields.feed_forward == "glu":
            inner = inner * self.dense(x, params["gate"])
        inner = self.norm(inner, params.get("norm", {})) if self.fields.inner_norm else inner
        return self.dense(inner, params["output"])

    def encode(self, ids, types):
        tables = self.params["bert"]["embeddings"]
        x = tables["word"]["embedding"][ids]
        if self.fields.position_embedding.called() == "learned":
            x = x + tables["position"]["embedding"][: len(ids)]
        if self.fields.position_embedding.called() == "sinusoidal":
            features = np.arange(x.shape[-1])
            angles = np.arange(len(ids))[:, None] / 10_000 ** (features // 2 * 2 / x.shape[-1])
            waves = np.where(features % 2, np.cos(angles), np.sin(angles))
            x = x + self.fields.initializer_range * waves
        if self.fields.type_vocab_size:
            x = x + tables["token_type"]["embedding"][types]
        x = self.norm(x, tables.get("norm", {})) if self.fields.embedding_norm else x
        stacked, states = self.params["bert"]["encoder"]["layers"], [x]

        def mixed(x, params):
            if not self.fields.layer_mixing:
                return x
            states.append(x)
            return sum(weight * state for weight, state in zip(params["weights"], states))

        for layer in range(self.fields.num_layers):
            params = jax.tree.map(lambda x, layer=layer: x[layer], stacked)
            norms = [params.get(f"{part}_norm", {}) for part in ("attention", "feed_forward")]
            if self.fields.norm_position == "pre":
                skip = layer == 0 and not self.fields.first_norm
                x = x + self.attention(
                    x if skip else self.norm(x, norms[0]), params["attention"], layer
                )
                x = mixed(x, params.get("attention_mixing"))
                x = x + self.feed_forward(self.norm(x, norms[1]), params["feed_forward"])
                x = mixed(x, params.get("feed_forward_mixing"))
            else:
                x = self.norm(x + self.attention(x, params["attention"], layer), norms[0])
                x = self.norm(x + self.feed_forward(x, params["feed_forward"]), norms[1])
        return self.norm(x, self.params["bert"].get("norm", {})) if self.fields.final_norm else x

    def words(self, hidden):
        head = self.params["masked_lm"]
        if self.fields.head_transform:
            hidden = ACTIVATIONS[self.fields.hidden_act](self.dense(hidden, head["dense"]))
            hidden = self.norm(hidden, head.get("norm", {}))
        tied = self.params["bert"]["embeddings"]["word"]
        table = (tied if self.fields.tied_decoder else head["decoder"])["embedding"]
        return (hidden @ table.T + head["bias"])[:, : self.fields.vocab_size]


def bucket_of(distance, buckets, max_distance):
    middle = buckets // 2
    size = min(abs(distance), max_distance - 1)
    if size > middle:
        share = math.log(size / middle) / math.log((max_distance - 1) / middle)
        size = middle + math.ceil(share * (middle - 1))
    return buckets - 1 + (size if distance > 0 else -size)


def perturbed(params):
    """Parameters of which none is a neutral 0 or 1."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)]
    return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("lineage", LINEAGES)
def test_an_encoder_computes_its_formulas(lineage):
    model = make_model(**LINEAGES[lineage])
    params = perturbed(jax.jit(model.init)(jax.random.key(0)))
    fields = build(Architecture, vars(ARCHITECTURE) | LINEAGES[lineage])
    batch = make_batch([[13, 21]])
    hidden, words = jax.jit(functools.partial(states_and_words, model.graphdef))(params, batch)
    reference = Reference(params, fields)
    for start, length in ((0, 13), (13, 21)):
        part = slice(start, start + length)
        ids, types = (batch[name][0, part] for name in ("input_ids", "token_type_ids"))
        expected = reference.encode(ids, types)
        np.testing.assert_allclose(hidden[0, part], expected, atol=2e-5)
        expected = reference.words(expected)
        np.testing.assert_allclose(words[0, part, : fields.vocab_size], expected, atol=5e-5)


def states_and_words(graphdef, params, batch):
    model = nnx.merge(graphdef, params)
    hidden = model.encode(batch)
    return hidden, model.masked_lm(hidden, model.bert.embeddings.word.embedding[...])


def test_gradients_of_the_formulas():
    """Every parameter of GPT-BERT's blocks, along one direction, by differences in float64."""
    fields = build(Architecture, vars(ARCHITECTURE) | LINEAGES["gptbert"])
    model = make_model(**LINEAGES["gptbert"], parts=("masked_lm",))
    params = perturbed(jax.jit(model.init)(jax.random.key(0)))
    batch = make_batch([[20]], max_seq_length=20)
    weights = np.random.default_rng(0).normal(size=(20, fields.vocab_size))

    def loss(params):
        words = states_and_words(model.graphdef, params, batch)[1]
        return jnp.sum(words[0, :, : fields.vocab_size] * weights)

    def exact(params):
        reference = Reference(params, fields)
        return np.sum(reference.words(reference.encode(batch["input_ids"][0], None)) * weights)

    gradients, structure = jax.tree.flatten(jax.jit(jax.grad(loss))(params))
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
    random = np.random.default_rng(1)
    for index, leaf in enumerate(leaves):
        direction = random.normal(size=leaf.shape)
        both = [
            exact(jax.tree.unflatten(structure, [*leaves[:index], moved, *leaves[index + 1 :]]))
            for moved in (leaf + 1e-6 * direction, leaf - 1e-6 * direction)
        ]
        size = np.linalg.norm(gradients[index]) * np.linalg.norm(direction)
        found = np.sum(np.asarray(gradients[index], np.float64) * direction)
        assert found == pytest.approx((both[0] - both[1]) / 2e-6, abs=1e-4 * size)


def test_buckets_of_relative_positions():
    buckets = Relative().buckets_of_distances()
    assert len(buckets) == 2 * 511 + 1
    assert list(buckets[511 : 511 + 17]) == list(range(31, 48))
    # As pretraining/model_extra.py of https://github.com/ltgoslo/gpt-bert computes them.
    assert {d: buckets[511 + d] - 31 for d in FAR_BUCKETS} == FAR_BUCKETS
    np.testing.assert_array_equal(buckets[::-1], 62 - buckets)


def test_initial_weights_of_gptbert():
    model = make_model(**LINEAGES["gptbert"], hidden_size=64, num_layers=3)
    layers = model.init(jax.random.key(0))["bert"]["encoder"]["layers"]
    for name in ("intermediate", "gate", "output"):
        kernels = np.asarray(layers["feed_forward"][name]["kernel"])
        expected = 0.88 * 0.2 / np.sqrt(2 * (1 + np.arange(3)))  # a normal cut at two deviations
        np.testing.assert_allclose(kernels.std((1, 2)), expected, rtol=0.03)
    query = np.asarray(layers["attention"]["query"]["kernel"])
    np.testing.assert_allclose(query.std((1, 2)), 0.88 * 0.2, rtol=0.03)
    np.testing.assert_array_equal(layers["attention_mixing"]["weights"], np.eye(7)[1::2])
    np.testing.assert_array_equal(layers["feed_forward_mixing"]["weights"], np.eye(7)[2::2])


@pytest.mark.parametrize("lineage", ["modernbert", "mosaicbert", "gptbert"])
def test_packed_rows_give_the_losses_and_gradients_of_unpacked_ones(lineage):
    objective, params = objective_and_params(**LINEAGES[lineage])
    packed = make_batch([[30, 12], [7, 9, 11]])
    alone = make_batch([[30], [12], [7], [9], [11]])
    found_gradients, found = losses_and_gradients(objective, params, packed)
    gradients, sums = losses_and_gradients(objective, params, alone)
    assert_trees_close(found, sums)
    assert_trees_close(found_gradients, gradients, rtol=1e-4)


@pytest.mark.parametrize(
    ("lineage", "changes"),
    [
        ("modernbert", {"scan_layers": False}),
        ("modernbert", {"remat": "full"}),
        ("modernbert", {"remat": "dots"}),
        ("gptbert", {"scan_layers": False, "remat": "dots"}),
    ],
    ids=str,
)
def test_a_pattern_of_layers_computes_the_same_however_it_is_run(lineage, changes):
    batch, key = make_batch([[30], [40]]), jax.random.key(3)
    fields = LINEAGES[lineage] | {"hidden_dropout": 0.1}
    reference = losses_and_gradients(*objective_and_params(**fields), batch, key)
    changed = losses_and_gradients(*objective_and_params(**fields, **changes), batch, key)
    assert_trees_close(reference, changed)


@pytest.mark.parametrize(
    ("lineage", "sizes"),
    [("modernbert", (8, 1, 1)), ("modernbert", (2, 2, 2)), ("gptbert", (2, 2, 2))],
    ids=str,
)
def test_layouts_compute_the_same(lineage, sizes):
    mesh = make_mesh(*sizes)
    batch = make_batch([[30, 9]] * 8)
    fields = LINEAGES[lineage] | {"num_heads": 2, "num_layers": 4}
    objective, params = objective_and_params(**fields)
    gradients, sums = losses_and_gradients(objective, params, batch)
    model = make_model(**fields)
    split = make_model(**fields, parallel=parallelism(mesh, NUMERICS))
    assert split.axes == model.axes
    on_mesh = type(objective)(split.graphdef, objective.masking, objective.seed)
    found_gradients, found = losses_and_gradients(on_mesh, params, batch)
    assert_trees_close(found, sums)
    assert_trees_close(found_gradients, gradients, rtol=1e-4)


def rows(length, heads=2, head_dim=64):
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, (2, length, heads, head_dim)) for key in keys]
    ends = jnp.asarray([[length // 3], [length // 2 + 3]])
    places = jnp.arange(length)
    ids = jnp.where(places < ends, 1, jnp.where(places < length - 5, 2, 0))
    return *arrays, ids


def result_and_gradients(attend, query, key, value, segment_ids):
    def loss(query, key, value):
        result = attend(query, key, value, segment_ids)
        return jnp.sum(jnp.sin(result)), result

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)


def whole(reach, query, key, value, segment_ids):
    found = attention_probabilities(query, key, segment_ids, value.dtype, reach=reach)
    return jnp.einsum("bhkq,bkhd->bqhd", found, value)


def distances():
    of_query, of_key = jax.random.normal(jax.random.key(1), (2, 15, 2, 8))
    return Distances(of_query, of_key, Relative(buckets=8, max_distance=18).buckets_of_distances())


@pytest.mark.parametrize(
    "scores",
    [{}, {"slopes": (0.5, 0.1)}, {"distances": distances()}],
    ids=["plain", "alibi", "rel"],
)
@pytest.mark.parametrize(("length", "window"), [(70, 16), (64, 16), (70, None), (33, 1)], ids=str)
def test_attention_in_blocks_is_attention(monkeypatch, scores, length, window):
    monkeypatch.setattr(attention_module, "WHOLE_LENGTH", 32)
    reach, arrays = Reach(window, **scores), rows(length, head_dim=8)
    found = result_and_gradients(functools.partial(attention, reach=reach), *arrays)
    expected = result_and_gradients(functools.partial(whole, reach), *arrays)
    assert_trees_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "reach", [Reach(128), Reach(), Reach(distances=distances())], ids=["local", "whole", "rel"]
)
def test_long_rows_hold_no_length_times_length(reach):
    arrays = jax.eval_shape(lambda: rows(4096, head_dim=8))
    attend = functools.partial(attention, reach=reach)
    program = jax.jit(jax.grad(lambda *arrays: attend(*arrays).sum(), argnums=(0, 1, 2)))
    compiled = program.lower(*arrays).compile()
    shapes = set(re.findall(r"\w\d+\[([\d,]+)\]", compiled.as_text()))
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) < 2 * 4096 * 4096
    if reach.distances is None:  # products with distances are several times those with keys
        limit = 2 * 2 * 4096 * 4096 * 4 / 2
        assert compiled.memory_analysis().temp_size_in_bytes < limit


def test_splash_attends_within_a_window():
    arrays = rows(256)
    found = splash_attention(*arrays, window=64, interpret=True)
    np.testing.assert_allclose(found, whole(Reach(64), *arrays), atol=2e-5)


def test_dropout_in_blocks_keeps_the_mean(monkeypatch):
    monkeypatch.setattr(attention_module, "WHOLE_LENGTH", 32)
    query, key, _, ids = rows(128, head_dim=8)
    ones = jnp.ones_like(query)
    for window in (16, None):
        found = attention(
            query,
            key,
            ones,
            ids,
            reach=Reach(window),
            dropout_rate=0.5,
            dropout_key=jax.random.key(1),
        )
        assert float(found.mean()) == pytest.approx(1, abs=0.05)
        assert float(found.std()) > 0.1


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("gggg", (0, 1)), ("glglgl", (0, 2)), ("Gllgllgll", (1, 3)), ("Ggggg", (1, 1)), ("g", (0, 1))],
)
def test_the_repetition_of_layers(pattern, found):
    kinds = [LayerKind(letter == "l", letter != "G") for letter in pattern]
    assert repetition(kinds) == found


def test_slopes_of_other_numbers_of_heads_than_powers_of_two():
    assert Alibi().slopes(4) == (0.25, 0.0625, 0.015625, 0.00390625)
    assert Alibi().slopes(6) == (0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"first_norm": False}, r"first_norm=False needs model\.norm_position='pre'"),
        ({"position_embedding": "rope", "num_heads": 32}, "even number of features per head"),
        ({"local_window": 0}, "must be positive"),
    ],
)
def test_fields_that_contradict_each_other(fields, message):
    given = {"hidden_size": 32, "num_heads": 4} | fields
    with pytest.raises(UserError, match=message):
        build(Architecture, given, "model")


def test_everything_works_on_a_later_encoder(sotu_store, tmp_path, capsys):
    """Trained on packed rows, with a longer phase, resumed, scored, used, fine-tuned, exported."""
    run, small = tmp_path / "run", tmp_path / "tuned"
    fields = {
        "data.store": sotu_store,
        "model.vocab_size": 1000,
        "model.hidden_size": 32,
        "model.num_heads": 2,
        "model.num_layers": 2,
        "model.intermediate_size": 48,
        "model.local_window": 8,
        "numerics.compute_dtype": "float32",
        "numerics.remat": "none",
        "log_every": 1,
        "eval_batches": 1,
    }
    for index, (length, rows) in enumerate([(32, 16), (64, 8), (64, 8)]):
        fields |= {
            f"phases[{index}].steps": 1,
            f"phases[{index}].data.max_seq_length": length,
            f"phases[{index}].data.batch_size": rows,
        }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ["pretrain", "--config=modernbert", f"--workdir={run}", *overrides]
    assert main(command) == 0
    assert main(["evaluate", f"--workdir={run}"]) == 0
    exported = tmp_path / "exported"
    assert main(["export", f"--model={run}", f"--output={exported}"]) == 0
    found = []
    for model in (run, exported):
        capsys.readouterr()
        assert main(["predict", "fill-mask", f"--model={model}", "The [MASK] of the union"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    data = tmp_path / "data.tsv"
    data.write_text("text\tlabel\n" + "peace\tgood\nwar\tbad\n" * 16)
    settings = {
        "init_from": run,
        "batch_size": 8,
        "epochs": 1.0,
        "layer_decay": 0.9,
        "task.train": data,
        "task.dev": data,
        "task.max_seq_length": 16,
        "numerics.compute_dtype": "float32",
    }
    overrides = [
        f"--config.{name}={value}" for name, value in settings.items() if value is not None
    ]
    command = ["finetune", "--config=finetune:classification", f"--workdir={small}", *overrides]
    assert main(command) == 0
    best = bert_jax.load(small / "best")
    assert all(row.keys() == {"good", "bad"} for row in best.classify(["peace", "war"]))
    assert best.attention("of the union").shape[:2] == (2, 2)


def test_a_run_of_gptbert_resumes_bit_for_bit(sotu_store, tmp_path):
    """Packed rows, dropout, masks that become fewer, LAMB; one step again from its checkpoint."""
    fields = {
        "data.store": sotu_store,
        "data.batch_size": 8,
        "data.max_seq_length": 32,
        "model.vocab_size": 1000,
        "model.hidden_size": 32,
        "model.num_heads": 2,
        "model.num_layers": 2,
        "model.intermediate_size": 48,
        "numerics.compute_dtype": "float32",
        "numerics.remat": "none",
        "steps": 3,
        "checkpoint_every": 1,
        "eval_batches": 1,
        "log_every": 1,
    }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ["pretrain", "--config=gptbert", f"--workdir={tmp_path}/run", *overrides]
    assert main(command) == 0
    first = bert_jax.load(tmp_path / "run").params
    assert main([*command, "--config.resume_from=1"]) == 0
    again = bert_jax.load(tmp_path / "run").params
    jax.tree.map(np.testing.assert_array_equal, first, again)

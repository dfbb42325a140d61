"""Logits, losses, gradients and optimizers against reference implementations.

The model is compared with `BertForPreTraining` of the transformers library on real text, in fp32
and without dropout, AdamW with torch's, and Adam without bias correction with Google's formula.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured import configured
from flax import nnx
from portables import make_config
from tiny import make_model

from bert_jax.data.store import open_token_store
from bert_jax.interop.lineages import BERT
from bert_jax.interop.portable import Portable
from bert_jax.interop.tensors import Stored, huggingface_naming, read_params, write_tensors
from bert_jax.model.heads import MASKED_LM, NEXT_SENTENCE, PRETRAINING
from bert_jax.objective.pretraining import PreTraining
from bert_jax.train.optimizers import AdamW
from bert_jax.train.schedules import Linear
from bert_jax.train.state import Params, TrainState
from bert_jax.train.step import make_train_step

TOLERANCE = 1e-4
NAMING = huggingface_naming(BERT, PRETRAINING)
STEPS = 10
SIZES = {"tiny": (2, 128, 2, 512), "odd": (3, 48, 3, 100)}  # layers, hidden, heads, FFN


class Text(NamedTuple):
    """Batches of sentence pairs before and after masking, and the objective that masks them."""

    batches: list[dict[str, np.ndarray]]
    masked: list[dict[str, np.ndarray]]
    objective: PreTraining


@pytest.fixture(scope="module")
def text(sotu_store) -> Text:
    """Rows with and without padding and, as where an evaluation ends, empty ones."""
    fields = {"batch_size": 8, "max_seq_length": 128, "short_seq_prob": 0.9, "packing": False}
    config = configured(**{f"data.{name}": value for name, value in fields.items()})
    store = open_token_store(sotu_store)
    source = store.training_batches(config.data, seed=0, host_rows=np.arange)
    batches = [source.batch(step) for step in range(STEPS)]
    for batch in batches:
        for name, rows in batch.items():
            rows[-2:] = -1 if name == "next_sentence_label" else 0
        lengths = (batch["segment_ids"] > 0).sum(axis=1)
        assert np.any((lengths > 0) & (lengths < 128))
    objective = PreTraining(None, config.bound_masking(store.tokenizer), seed=0)
    prepare = jax.jit(objective.prepare)
    return Text(batches, [jax.device_get(prepare(batch)) for batch in batches], objective)


class Pair(NamedTuple):
    """The same random weights in both implementations."""

    reference: Any
    objective: PreTraining
    model: Portable
    params: Params


@pytest.fixture
def pair(request, text) -> Pair:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # more threads wait for each other at this size
    torch.manual_seed(0)
    layers, hidden, heads, intermediate = SIZES[request.param]
    vocab_size = len(text.objective.masking.is_special)
    config = transformers.BertConfig(
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=128,
        attn_implementation="eager",
    )
    reference = transformers.BertForPreTraining(config).eval()
    with torch.no_grad():  # biases and LayerNorms as well: zeros and ones would hide mistakes
        for name, weight in reference.named_parameters():
            weight.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.1)
    sizes = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": 128,
    }
    graphdef, *_ = make_model(vocab_size=vocab_size, **sizes)
    architecture, numerics = make_config(vocab_size, **sizes)
    stored = {
        name: Stored(array.shape, "float32", array.copy)
        for name, array in arrays(reference.named_parameters()).items()
    }
    options = {"rows": architecture.vocab_size, "strict": True, "report": pytest.fail}
    params = read_params(stored, NAMING, architecture, PRETRAINING, **options)
    params = jax.tree.map(jnp.asarray, params)
    objective = dataclasses.replace(text.objective, graphdef=graphdef)
    return Pair(reference, objective, Portable(architecture, numerics, None, params), params)


def arrays(named_tensors) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in named_tensors}


def to_huggingface(pair: Pair, params: Params) -> dict[str, np.ndarray]:
    """Parameters, or anything of their shapes, by the names of the reference."""
    return dict(write_tensors(NAMING, pair.model._replace(params=params)))


def reference_inputs(masked) -> dict[str, Any]:
    """A masked batch as the reference wants it: labels for every position, -100 where none."""
    import torch

    rows, slots = np.nonzero(masked["masked_lm_weights"])
    labels = np.full_like(masked["input_ids"], -100)
    labels[rows, masked["masked_lm_positions"][rows, slots]] = masked["masked_lm_ids"][rows, slots]
    next_sentence = masked["next_sentence_label"][:, 0]
    inputs = {
        "input_ids": masked["input_ids"],
        "token_type_ids": masked["token_type_ids"],
        "attention_mask": masked["segment_ids"] > 0,
        "labels": labels,
        "next_sentence_label": np.where(next_sentence < 0, -100, next_sentence),
    }
    return {name: torch.tensor(values, dtype=torch.long) for name, values in inputs.items()}


def total_loss(sums) -> jax.Array:
    return sums["mlm_loss"] / sums["mlm_count"] + sums["nsp_loss"] / sums["nsp_count"]


def assert_close(ours, theirs):
    """|ours - theirs| / |theirs| is below the tolerance for each tensor."""
    assert ours.keys() == theirs.keys()
    norm = np.linalg.norm
    differences = {name: norm(ours[name] - theirs[name]) / norm(theirs[name]) for name in theirs}
    worst = max(differences, key=differences.get)
    assert differences[worst] < TOLERANCE, worst


def pop_key_biases(tensors) -> list[np.ndarray]:
    """Takes out what has no gradient but rounding: it shifts all scores of a query alike."""
    return [tensors.pop(name) for name in list(tensors) if name.endswith("key.bias")]


@pytest.mark.parametrize("pair", SIZES, indirect=True)
def test_logits(text, pair):
    masked = text.masked[0]
    model = nnx.merge(pair.objective.graphdef, pair.params)
    hidden = model.encode(masked)
    word_logits, pair_logits = (
        head.apply(model, head.read(model.bert, hidden, masked))
        for head in (MASKED_LM, NEXT_SENTENCE)
    )
    theirs = pair.reference(**reference_inputs(masked))

    rows, slots = np.nonzero(masked["masked_lm_weights"])
    assert len(rows) > 30
    expected = theirs.prediction_logits[rows, masked["masked_lm_positions"][rows, slots]].detach()
    ours = word_logits[rows, slots, : expected.shape[-1]]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)

    labels = masked["next_sentence_label"][:, 0]
    assert set(labels.tolist()) == {-1, 0, 1}
    expected = theirs.seq_relationship_logits[labels >= 0].detach()
    np.testing.assert_allclose(pair_logits[labels >= 0, 0], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pair", SIZES, indirect=True)
def test_loss_and_gradients(text, pair):
    masked = text.masked[0]
    loss_and_gradients = jax.jit(
        jax.value_and_grad(lambda params, batch: total_loss(pair.objective.sums(params, batch)))
    )
    loss, gradients = loss_and_gradients(pair.params, masked)
    expected = pair.reference(**reference_inputs(masked)).loss
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)

    theirs = arrays((name, weight.grad) for name, weight in pair.reference.named_parameters())
    ours = to_huggingface(pair, gradients)
    for bias in pop_key_biases(ours) + pop_key_biases(theirs):
        assert np.linalg.norm(bias) < 1e-6
    assert_close(ours, theirs)


@pytest.mark.parametrize("pair", ["tiny"], indirect=True)
def test_ten_steps_of_adamw(text, pair):
    import torch

    optimizer = AdamW(weight_decay=0.01, clip_norm=1.0, bias_correction=True).transformation({})
    schedule = Linear().rate(peak=2e-3, warmup_steps=3, steps=STEPS)
    train_step = jax.jit(make_train_step(pair.objective, optimizer, schedule))
    state = TrainState(jnp.zeros([], jnp.int32), pair.params, optimizer.init(pair.params))

    weights = dict(pair.reference.named_parameters())
    before = arrays(weights.items())
    groups = {True: [], False: []}  # decayed or not
    for name, weight in weights.items():
        groups[not name.endswith(("bias", "LayerNorm.weight"))].append(weight)
    reference = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 0.01}, {"params": groups[False]}],
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.0,
    )
    for step, (batch, masked) in enumerate(zip(text.batches, text.masked)):
        state, metrics = train_step(state, batch, None)
        loss = pair.reference(**reference_inputs(masked)).loss
        reference.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for group in reference.param_groups:
            group["lr"] = float(schedule(step))
        reference.step()
        assert float(total_loss(metrics)) == pytest.approx(loss.item(), rel=TOLERANCE)
        assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=TOLERANCE)

    theirs = arrays(weights.items())
    ours = to_huggingface(pair, state.params)
    assert_close(ours, theirs)
    pop_key_biases(theirs)
    moved, expected = (
        {name: end[name] - before[name] for name in theirs} for end in (ours, theirs)
    )
    assert_close(moved, expected)


@pytest.mark.core
def test_adam_without_bias_correction_is_googles():
    """`AdamWeightDecayOptimizer` of google-research/bert, after its clip by the global norm."""
    random = np.random.default_rng(0)
    names = ("kernel", "embedding", "bias", "scale")
    params = {name: random.normal(size=(4, 3)) for name in names}
    expected, m, v = dict(params), dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    fields = {"b1": 0.9, "b2": 0.99, "eps": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0}
    optimizer = AdamW(**fields, bias_correction=False).transformation({})
    state = optimizer.init(jax.tree.map(jnp.asarray, params))
    for scale in np.linspace(0.01, 1.0, STEPS):  # the first gradients are too small to be clipped
        gradients = {name: scale * random.normal(size=(4, 3)) for name in names}
        direction, state = optimizer.update(jax.tree.map(jnp.asarray, gradients), state, params)
        params = jax.tree.map(lambda p, d: p - 0.1 * d, params, direction)

        norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        for name in names:
            g = gradients[name] / max(norm, 1.0)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.99 * v[name] + 0.01 * g**2
            update = m[name] / (np.sqrt(v[name]) + 1e-2)
            if name in ("kernel", "embedding"):
                update += 0.1 * expected[name]
            expected[name] = expected[name] - 0.1 * update
    for name in names:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5, atol=1e-6)

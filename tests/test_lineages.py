"""Every class of transformers that can be read and written, against transformers itself in torch.

Models are small and random, in fp32. One side has rows with padding, the other packed rows.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from safetensors.numpy import load_file
from test_model import assert_trees_close, losses_and_gradients, objective_and_params
from tiny import NUMERICS, make_batch, make_model

import bert_jax
from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError
from bert_jax.interop import formats
from bert_jax.interop.choices import CLASSES
from bert_jax.interop.configs import lineage_of, write_fields
from bert_jax.interop.huggingface import write_huggingface
from bert_jax.interop.lineages import LINEAGES
from bert_jax.interop.tensors import huggingface_naming, write_tensors
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.heads import HEADS, MASKED_LM, parts_of
from bert_jax.model.losses import cross_entropy
from bert_jax.model.model import build_model
from bert_jax.model.positions import Learned, Rope
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import parallelism

LOGITS, GRADIENTS = 1e-5, 1e-4
VOCAB = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *(f"word{i}" for i in range(66)))
MASK_ID = 4
LENGTHS = (29, 11, 23, 17)  # of examples, of which two share a row; longer than the window
SIZES = {"num_hidden_layers": 4, "hidden_size": 48, "num_attention_heads": 3}
COMMON = {"vocab_size": len(VOCAB), "pad_token_id": 1, "intermediate_size": 80} | SIZES
FIELDS = {
    "bert": {"max_position_embeddings": 40},
    "roberta": {"max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": {"max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "distilbert": {
        "n_layers": 4, "dim": 48, "n_heads": 3, "hidden_dim": 80, "max_position_embeddings": 40,
    },
    "electra": {"embedding_size": 32, "max_position_embeddings": 40},
    "esm": {
        "position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": MASK_ID,
        "max_position_embeddings": 42, "layer_norm_eps": 1e-5,
    },
    "modernbert": {
        "local_attention": 8, "global_attn_every_n_layers": 3, "max_position_embeddings": 40,
        "global_rope_theta": 160_000.0, "bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2,
        "sep_token_id": 2,
    },
    "eurobert": {
        "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 2, "mask_token_id": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 250_000.0},
    },
}  # fmt: skip
# Further settings of a lineage, tried with its masked LM.
VARIANTS = {
    "esm": {
        "position_embedding_type": "absolute", "emb_layer_norm_before": True,
        "token_dropout": False,
    },
    "electra": {"embedding_size": 48},
    "modernbert": {
        "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True,
        "decoder_bias": False,
    },
}  # fmt: skip
MASKED = [
    (name, fields)
    for name in CLASSES
    for fields in ({}, VARIANTS.get(name))
    if name != "bert" and fields is not None  # BERT's gradients are those of test_parity
]


@pytest.fixture(scope="module")
def wordpiece() -> WordPiece:
    return WordPiece(VOCAB, lowercase=True)


def reference(torch, wordpiece, path, name, class_name, **fields):
    """A random model of transformers, whose directory is written to `path`."""
    import transformers

    torch.manual_seed(0)
    config_class = transformers.CONFIG_MAPPING[name]
    labels = 2 if "QuestionAnswering" in class_name else 3
    config = config_class(**COMMON | FIELDS[name] | fields, num_labels=labels)
    config._attn_implementation = "eager"
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():  # biases and norms as well: zeros and ones would hide mistakes
        for weight, values in model.named_parameters():
            is_scale = "norm" in weight.lower() and weight.endswith("weight")
            values.normal_(1.0 if is_scale else 0.0, 0.15)
    model.save_pretrained(path)
    wordpiece.save(epath.Path(path))
    return model


@functools.cache
def examples() -> list[np.ndarray]:
    """Ids of texts that begin with [CLS] and end with [SEP], with different shares of [MASK]."""
    random = np.random.default_rng(0)
    found = []
    for number, length in enumerate(LENGTHS):
        ids = random.integers(5, len(VOCAB), length)
        ids[0], ids[-1] = 0, 2
        ids[2 : 2 + 2 * number : 2] = MASK_ID
        found.append(ids.astype(np.int32))
    return found


def types(ids: np.ndarray, count: int) -> np.ndarray:
    """The second half of a text is of the second type, where there is one."""
    return (np.arange(len(ids)) >= len(ids) // 2).astype(np.int32) * (count > 1)


def packed(type_count: int) -> dict[str, np.ndarray]:
    """The examples in two rows, without the words to predict."""
    rows = {
        name: np.zeros((2, 40), np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids")
    }
    rows["input_ids"][:] = 1
    rows["cls_positions"] = np.zeros((2, 2), np.int32)
    for number, ids in enumerate(examples()):
        row, slot = divmod(number, 2)
        start = int((rows["segment_ids"][row] > 0).sum())
        at = (row, slice(start, start + len(ids)))
        rows["input_ids"][at] = ids
        rows["token_type_ids"][at] = types(ids, type_count)
        rows["position_ids"][at] = np.arange(len(ids))
        rows["segment_ids"][at] = slot + 1
        rows["cls_positions"][row, slot] = start
    return rows


def padded(torch, type_count: int, model) -> dict:
    """The examples as transformers wants them, one a row."""
    rows = {
        n: np.zeros((4, 32), np.int64) for n in ("input_ids", "attention_mask", "token_type_ids")
    }
    rows["input_ids"][:] = 1
    for row, ids in enumerate(examples()):
        rows["input_ids"][row, : len(ids)] = ids
        rows["attention_mask"][row, : len(ids)] = 1
        rows["token_type_ids"][row, : len(ids)] = types(ids, type_count)
    if model.config.model_type not in ("bert", "electra"):
        del rows["token_type_ids"]
    return {name: torch.from_numpy(values) for name, values in rows.items()}


def by_token(outputs: np.ndarray, rows: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Each example's outputs, from those of packed rows."""
    found = []
    for row in range(2):
        for segment in (1, 2):
            found.append(outputs[row][rows["segment_ids"][row] == segment])
    return found


@functools.partial(jax.jit, static_argnums=0)
def encode(graphdef, params, rows):
    return nnx.merge(graphdef, params).encode(rows)


def our_outputs(model, rows) -> dict[str, list[np.ndarray]]:
    """By part, the outputs of each example."""
    parts = parts_of(model.params)
    bert = {name: values for name, values in model.params["bert"].items() if name != "pooler"}
    alone = build_model(model.architecture, model.numerics, parts=())
    hidden = encode(alone.graphdef, {"bert": bert}, rows)
    whole = build_model(model.architecture, model.numerics, parts=parts, outputs=model.outputs)
    merged = nnx.merge(whole.graphdef, model.params)
    found = {"": by_token(np.asarray(hidden), rows)}
    for part in parts:
        if part == "pooler":
            continue
        head = HEADS[part]
        if part == "masked_lm":
            words = merged.bert.embeddings.word.embedding[...]
            logits = merged.masked_lm(hidden, words)[..., : len(VOCAB)]
        else:
            logits = head.apply(merged, head.read(merged.bert, hidden, rows))
        logits = np.asarray(logits)
        found[part] = list(logits.reshape(4, -1)) if head.pooled else by_token(logits, rows)
    return found


def their_outputs(torch, model, inputs) -> list[np.ndarray]:
    """The outputs of each example, without padding."""
    with torch.inference_mode():
        found = model(**inputs)
    if "start_logits" in found:
        values = torch.stack([found.start_logits, found.end_logits], -1)
    else:
        values = found["logits"] if "logits" in found else found["last_hidden_state"]
    values = values.numpy()
    if "ForSequence" in type(model).__name__:
        return list(values)
    return [x[: len(ids)].reshape(len(ids), -1) for x, ids in zip(values, examples())]


def assert_there_and_back(torch, theirs, model, path, back, inputs, outputs):
    """What is written from `model` is what `path` has, and transformers loads it in silence."""
    import transformers

    lines = []
    back.mkdir()
    write_huggingface(epath.Path(back), model, lines.append)
    expected, found = (load_file(x / "model.safetensors") for x in (path, back))
    older = {"gamma": "weight", "beta": "bias"}  # as transformers writes the norms of ESM
    for name in [name for name in expected if name.endswith(tuple(older))]:
        start, _, leaf = name.rpartition(".")
        expected[f"{start}.{older[leaf]}"] = expected.pop(name)
    unread = {name for name in expected if "contact_head" in name}
    assert [line.partition("(")[0] for line in lines] == ["missing: esm.contact_head.* "] * bool(
        unread
    )
    rates = {name: found.pop(name) for name in list(found) if "inv_freq" in name}
    their_rates = [expected.pop(name) for name in list(expected) if "inv_freq" in name]
    for values in rates.values():
        np.testing.assert_allclose(values, their_rates[0], rtol=1e-6)
    assert set(found) == set(expected) - unread
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    loaded, loading = type(theirs).from_pretrained(back, output_loading_info=True)
    assert set(loading["missing_keys"]) <= unread
    assert not loading["unexpected_keys"]
    loaded.config._attn_implementation = "eager"
    for one, other in zip(their_outputs(torch, loaded.eval(), inputs), outputs):
        # The rates of RoPE that ESM's files hold may differ in their last bit.
        np.testing.assert_allclose(one, other, rtol=0, atol=LOGITS if unread else 0)
    assert transformers.AutoConfig.from_pretrained(back).model_type == theirs.config.model_type


CLASS_NAMES = [
    (name, class_name)
    for name, classes in CLASSES.items()
    for class_name in classes
    if name not in ("bert", "xlm-roberta") and "ForMaskedLM" not in class_name
]


@pytest.mark.parametrize(("name", "class_name"), CLASS_NAMES)
def test_every_class(name, class_name, torch, wordpiece, tmp_path):
    theirs = reference(torch, wordpiece, tmp_path / "theirs", name, class_name)
    lines = []
    model = formats.read(tmp_path / "theirs", report=lines.append)
    assert all("(a constant)" in line or "contacts" in line for line in lines), lines
    parts = CLASSES[name][class_name]
    assert set(parts_of(model.params)) == set(parts)

    types = model.architecture.type_vocab_size
    ours = our_outputs(model, packed(types))
    inputs = padded(torch, types, theirs)
    expected = their_outputs(torch, theirs, inputs)
    part = parts[-1] if parts and parts[-1] != "pooler" else ""
    for one, other in zip(ours[part], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=LOGITS)
    assert_there_and_back(
        torch, theirs, model, tmp_path / "theirs", tmp_path / "back", inputs, expected
    )


@pytest.mark.parametrize(("name", "fields"), MASKED)
def test_masked_lm(name, fields, torch, wordpiece, tmp_path):
    """Logits and the gradient of every parameter."""
    class_name = next(each for each in CLASSES[name] if each.endswith("ForMaskedLM"))
    theirs = reference(torch, wordpiece, tmp_path / "theirs", name, class_name, **fields)
    model = formats.read(tmp_path / "theirs", report=print)
    types = model.architecture.type_vocab_size
    rows, inputs = packed(types), padded(torch, types, theirs)
    expected = their_outputs(torch, theirs, inputs)
    for one, other in zip(our_outputs(model, rows)["masked_lm"], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=LOGITS)
    if name != "xlm-roberta":  # which is written as a RoBERTa
        assert_there_and_back(
            torch, theirs, model, tmp_path / "theirs", tmp_path / "back", inputs, expected
        )

    # Every third token is predicted.
    rows["masked_lm_positions"] = np.tile(np.arange(0, 40, 3, dtype=np.int32), (2, 1))
    real = np.take_along_axis(rows["segment_ids"], rows["masked_lm_positions"], 1) > 0
    rows["masked_lm_ids"] = (rows["masked_lm_positions"] * 7) % len(VOCAB)
    structure = build_model(model.architecture, model.numerics, parts=("masked_lm",))

    @jax.jit
    @jax.grad
    def gradient(params, rows):
        merged = nnx.merge(structure.graphdef, params)
        logits = MASKED_LM.apply(merged, MASKED_LM.read(merged.bert, merged.encode(rows), rows))
        weights = jnp.asarray(real, jnp.float32)
        return cross_entropy(logits, rows["masked_lm_ids"], weights)["loss"] / real.sum()

    gradients = jax.device_get(gradient(jax.tree.map(jnp.asarray, model.params), rows))
    labels = np.full((4, 32), -100)
    for number, ids in enumerate(examples()):
        row, slot = divmod(number, 2)
        start = rows["cls_positions"][row, slot]
        for place in range(0, 40, 3):
            if start <= place < start + len(ids):
                labels[number, place - start] = (place * 7) % len(VOCAB)
    assert (labels >= 0).sum() == real.sum()
    logits = theirs(**inputs)["logits"]
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(labels).flatten()
    ).backward()
    naming = huggingface_naming(LINEAGES[name], ("masked_lm",))
    ours = dict(write_tensors(naming, model._replace(params=gradients)))
    tied = LINEAGES[name].tied
    found = {
        tied.get(weight, weight): values.grad.numpy()
        for weight, values in theirs.named_parameters()
        if values.grad is not None
    }
    assert ours.keys() == found.keys()
    for weight, values in found.items():
        size = np.linalg.norm(values)
        if size < 1e-6:  # a key's bias shifts all scores of a query alike
            assert "key" in weight or "k_lin" in weight, weight
            continue
        assert np.linalg.norm(ours[weight] - values) < GRADIENTS * size, weight


def test_the_mean_of_a_text_is_pooled(torch, wordpiece, tmp_path):
    """Classifiers of ModernBERT read [CLS] or the mean, as their config says."""
    name = "ModernBertForSequenceClassification"
    theirs = reference(
        torch, wordpiece, tmp_path / "theirs", "modernbert", name, classifier_pooling="mean"
    )
    model = formats.read(tmp_path / "theirs", report=pytest.fail)
    expected = their_outputs(torch, theirs, padded(torch, 0, theirs))
    for one, other in zip(our_outputs(model, packed(0))["sequence_classifier"], expected):
        np.testing.assert_allclose(one, other, rtol=0, atol=LOGITS)
    back = tmp_path / "back"
    back.mkdir()
    write_huggingface(epath.Path(back), model, pytest.fail)
    assert json.loads((back / "config.json").read_text())["classifier_pooling"] == "mean"


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("modernbert", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "n-th"),
        ("modernbert", {"layer_types": "local"}, "layer_types"),
        ("modernbert", {"global_attn_every_n_layers": "3"}, "global_attn_every_n_layers"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type"),
        ("modernbert", {"classifier_activation": "relu"}, "only 'gelu' can be read"),
        ("eurobert", {"num_key_value_heads": 1}, "num_key_value_heads must be 3"),
        ("roberta", {"pad_token_id": "1"}, "pad_token_id"),
        ("roberta", {"max_position_embeddings": 1}, "max_position_embeddings"),
        ("electra", {"embedding_size": [32]}, "embedding_size"),
        ("esm", {"token_dropout": True, "mask_token_id": None}, "mask_token_id"),
        ("esm", {"is_folding_model": True}, "is_folding_model is True"),
        ("deberta-v2", {}, "model_type is 'deberta-v2'; only bert, roberta"),
        (["bert"], {}, "model_type is"),
    ],
)
def test_what_cannot_be_read(model_type, changes, message, wordpiece, tmp_path):
    known = FIELDS.get(model_type, {}) if isinstance(model_type, str) else {}
    fields = {"model_type": model_type, **COMMON, **known, **changes}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    wordpiece.save(epath.Path(tmp_path))
    with pytest.raises(UserError, match=message):
        formats.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "lineage"),
    [
        ({}, "bert"),
        ({"position_embedding": Learned(offset=2), "type_vocab_size": 1}, "roberta"),
        ({"embedding_size": 128, "pooler": "gelu"}, "electra"),
        ({"norm_position": "pre", "final_norm": True, "embedding_norm": False,
          "type_vocab_size": 0, "position_embedding": Rope()}, "esm"),
    ],
)  # fmt: skip
def test_the_class_that_computes_a_model(changes, lineage):
    assert lineage_of(Architecture(**changes)).model_type == lineage


def test_a_dropout_rate_that_is_not_set_is_that_of_attention():
    """Configurations of transformers have numbers only."""
    numerics = Numerics(hidden_dropout=0.2, attention_dropout=0.3, feed_forward_dropout=0.4)
    lineage = LINEAGES["modernbert"]
    changes = lineage.blocks | {"norm_bias": False, "position_embedding": Rope()}
    written = write_fields(Architecture(**changes), numerics, lineage)
    rates = {name: value for name, value in written.items() if "dropout" in name}
    assert rates == {"embedding_dropout": 0.2, "attention_dropout": 0.3, "mlp_dropout": 0.4}


def test_without_a_pooler_its_kind_does_not_matter():
    assert lineage_of(Architecture(), ("replaced_token",)).model_type == "electra"
    assert lineage_of(Architecture(embedding_size=128), ("masked_lm",)).model_type == "electra"
    assert lineage_of(Architecture(), ("masked_lm",)).model_type == "bert"
    assert lineage_of(Architecture(pooler="gelu"), ("masked_lm",)).model_type == "electra"
    with pytest.raises(UserError, match=r"model\.embedding_size is 128; no class"):
        lineage_of(Architecture(embedding_size=128), ("pooler", "masked_lm"))


def test_no_class_computes_this_model():
    with pytest.raises(UserError, match=r"model\.norm_scale is False; no class of transformers"):
        lineage_of(Architecture(norm_scale=False))


TEXTS = [
    ("The cat sat on the mat.", "It was a sunny day, and nobody came."),
    ("Nobody came; it was the mat!", "The cat's day"),
]


def bpe(torch, path, kind):
    """A byte-level BPE with the special tokens of RoBERTa or ModernBERT, written to `path`."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    names = {
        "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "modernbert": ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"],
    }[kind]
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(
        [text for pair in TEXTS for text in pair] * 3,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=names,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    cls, pad, sep, unk, mask = names
    if kind == "roberta":
        library.post_processor = processors.RobertaProcessing((sep, 2), (cls, 0))
    else:
        library.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B {sep}",
            special_tokens=[(cls, 0), (sep, 2)],
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, cls_token=cls, pad_token=pad, sep_token=sep, unk_token=unk,
        mask_token=mask,
    )  # fmt: skip
    tokenizer.save_pretrained(path)
    return tokenizer


@pytest.mark.parametrize("name", ["roberta", "modernbert"])
def test_texts_to_classes(name, torch, wordpiece, tmp_path):
    """Its own tokenizer, pairs, and a classifier give what transformers gives."""
    prefix = {"roberta": "Roberta", "modernbert": "ModernBert"}[name]
    class_name = f"{prefix}ForSequenceClassification"
    (tmp_path / "tokenizer").mkdir()
    tokenizer = bpe(torch, tmp_path / "tokenizer", name)
    fields = {"vocab_size": len(tokenizer), "max_position_embeddings": 130}
    theirs = reference(torch, wordpiece, tmp_path / "model", name, class_name, **fields)
    for file in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / "model" / file).unlink()
    tokenizer.save_pretrained(tmp_path / "model")

    inputs = tokenizer(*zip(*TEXTS), padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        expected = theirs(**inputs).logits.softmax(-1).numpy()
    ours = bert_jax.load(tmp_path / "model").classify(TEXTS)
    for one, other in zip(ours, expected, strict=True):
        found = [one[f"LABEL_{index}"] for index in range(3)]
        np.testing.assert_allclose(found, other, rtol=0, atol=LOGITS)

    back = tmp_path / "back"
    back.mkdir()
    write_huggingface(epath.Path(back), formats.read(tmp_path / "model"), pytest.fail)
    transformers = pytest.importorskip("transformers")
    again = transformers.AutoTokenizer.from_pretrained(back)
    found = again(*zip(*TEXTS), padding=True, return_tensors="pt")
    torch.testing.assert_close(found["input_ids"], inputs["input_ids"])


def test_a_layout_computes_what_one_device_does():
    """With what ELECTRA, ESM and RoBERTa have and BERT has not, all in one model."""
    mesh, batch = make_mesh(2, 2, 2), make_batch([[30, 9]] * 8)
    fields = {
        "num_heads": 2,
        "num_layers": 2,
        "embedding_size": 32,
        "token_dropout_id": MASK_ID,
        "decoder_bias": False,
        "type_vocab_size": 1,
        "position_embedding": {"name": "learned", "offset": 2},
    }
    objective, params = objective_and_params(**fields)
    _, sums = losses_and_gradients(objective, params, batch)
    split = make_model(**fields, parallel=parallelism(mesh, NUMERICS))
    on_mesh = type(objective)(split.graphdef, objective.masking, objective.seed)
    _, found = losses_and_gradients(on_mesh, params, batch)
    assert_trees_close(found, sums)

"""Small random models as directories of Hugging Face, written without this package."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WORDS = "the cat sat on mat dog ran good bad film new york city president of united states"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = [
    "[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"[]/.,-<>0123456789",
    *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS.split(),
]  # fmt: skip
CLASSES = {
    "pretraining": "BertForPreTraining",
    "sequence": "BertForSequenceClassification",
    "token": "BertForTokenClassification",
    "choice": "BertForMultipleChoice",
    "answer": "BertForQuestionAnswering",
}
HIDDEN, FEED_FORWARD, LAYERS = 32, 64, 2


def write_model(
    path: Path, head="pretraining", *, labels=(), rows=0, vocab=tuple(VOCAB), **fields
) -> Path:
    """Writes a model; `fields` are those of its config.json, `rows` those of its table of words."""
    random, tensors, rows = np.random.default_rng(0), {}, rows or len(vocab)

    def add(name, *shape):
        tensors[name] = (0.3 * random.standard_normal(shape)).astype(np.float32)

    def dense(name, outputs, inputs):
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name):
        tensors[f"{name}.weight"] = np.ones(HIDDEN, np.float32)
        tensors[f"{name}.bias"] = np.zeros(HIDDEN, np.float32)

    types = fields.get("type_vocab_size", 2)
    positions = fields.get("max_position_embeddings", 64)
    for name, count in (("word", rows), ("position", positions), ("token_type", types)):
        add(f"bert.embeddings.{name}_embeddings.weight", count, HIDDEN)
    norm("bert.embeddings.LayerNorm")
    for layer in (f"bert.encoder.layer.{i}" for i in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            dense(f"{layer}.attention.{part}", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", FEED_FORWARD, HIDDEN)
        dense(f"{layer}.output.dense", HIDDEN, FEED_FORWARD)
        norm(f"{layer}.output.LayerNorm")
    if head not in ("token", "answer"):
        dense("bert.pooler.dense", HIDDEN, HIDDEN)
    if head == "pretraining":
        dense("cls.predictions.transform.dense", HIDDEN, HIDDEN)
        norm("cls.predictions.transform.LayerNorm")
        add("cls.predictions.bias", rows)
        dense("cls.seq_relationship", 2, HIDDEN)
    elif head == "answer":
        dense("qa_outputs", 2, HIDDEN)
    else:
        dense("classifier", 1 if head == "choice" else len(labels) or 2, HIDDEN)
    config = {
        "architectures": [CLASSES[head]], "model_type": "bert", "vocab_size": rows,
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "intermediate_size": FEED_FORWARD, "max_position_embeddings": 64, "type_vocab_size": 2,
        "hidden_act": "gelu",
    }  # fmt: skip
    if labels:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config | fields))
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab))
    (path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path

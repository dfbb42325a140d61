"""Models with random weights, away from training."""

import jax
import numpy as np

from bert_jax.data.wordpiece import WordPiece
from bert_jax.fields import build
from bert_jax.interop.portable import Portable
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.heads import HEADS
from bert_jax.model.model import build_model

SIZES = {"tiny": (2, 128, 2), "mini": (4, 256, 4)}  # layers, hidden, heads
LABELS = ("negative", "neutral", "positive")


def make_config(vocab_size: int, size: str = "tiny", **changes) -> tuple[Architecture, Numerics]:
    """A small model, computed in fp32."""
    layers, hidden, heads = SIZES[size]
    numerics = {"compute_dtype": "float32", "attention": "xla", "remat": "none"}
    numerics |= {name: changes.pop(name) for name in vars(Numerics()) if name in changes}
    fields = {
        "vocab_size": vocab_size,
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 128,
    }
    return build(Architecture, fields | changes), build(Numerics, numerics)


def make_portable(wordpiece: WordPiece, parts, size: str = "tiny", **changes) -> Portable:
    """Biases and LayerNorms are random as well: zeros and ones would hide mistakes."""
    architecture, numerics = make_config(len(wordpiece.vocab), size, **changes)
    has_labels = any(part in parts and head.has_labels for part, head in HEADS.items())
    labels = LABELS if has_labels else ()
    model = build_model(architecture, numerics, parts=parts, outputs=len(labels))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    random = np.random.default_rng(0)

    def draw(path, like):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return random.normal(mean, 0.1, like.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    for table in (params["bert"]["embeddings"]["word"], params.get("masked_lm", {})):
        for name in {"embedding", "bias"} & table.keys():  # as after a conversion
            table[name][architecture.vocab_size :] = 0
    return Portable(architecture, numerics, wordpiece, params, labels)


def in_one_group(config: dict) -> dict:
    """A saved configuration as older versions wrote it, with all fields of the model in "model"."""
    names = [
        "hidden_dropout",
        "attention_dropout",
        "compute_dtype",
        "attention",
        "scan_layers",
        "remat",
    ]
    numerics = {name: config["numerics"][name] for name in names}
    model = config["model"] | numerics | {"position_embedding": "learned"}
    return {name: config[name] for name in config if name != "numerics"} | {"model": model}

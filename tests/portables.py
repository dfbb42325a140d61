"""Models with random weights, away from training."""

import jax
import numpy as np

from bert_jax.config import build_model_config
from bert_jax.data.wordpiece import WordPiece
from bert_jax.interop.portable import Portable
from bert_jax.parallel.mesh import make_mesh
from bert_jax.train.build import build_model

SIZES = {"tiny": (2, 128, 2), "mini": (4, 256, 4)}  # layers, hidden, heads
LABELS = ("negative", "neutral", "positive")


def make_config(vocab_size: int, size: str = "tiny", **changes):
    layers, hidden, heads = SIZES[size]
    fields = {
        "vocab_size": vocab_size,
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 128,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "position_embedding": "learned",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "compute_dtype": "float32",
        "attention": "xla",
        "scan_layers": True,
        "remat": "none",
    }
    return build_model_config(fields | changes)


def make_portable(wordpiece: WordPiece, parts, size: str = "tiny", **changes) -> Portable:
    """Biases and LayerNorms are random as well: zeros and ones would hide mistakes."""
    config = make_config(len(wordpiece.vocab), size, **changes)
    labels = LABELS if any("classifier" in part for part in parts) else ()
    shapes = jax.eval_shape(
        build_model(config, make_mesh(), parts, len(labels)).init, jax.random.key(0)
    )
    random = np.random.default_rng(0)

    def draw(path, like):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return random.normal(mean, 0.1, like.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    for table in (params["bert"]["embeddings"]["word"], params.get("masked_lm", {})):
        for name in {"embedding", "bias"} & table.keys():  # as after a conversion
            table[name][config.vocab_size :] = 0
    return Portable(config, wordpiece, params, labels)

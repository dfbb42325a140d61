"""A small BERT on the State of the Union addresses, in minutes on two CPU cores.

    bash launch/quickstart.sh

Four choices get such a small model off the plateau on which it copies its input and knows word
frequencies but not context: short rows (attention starts as an average over the row, in which
neighbours must count), fixed positions (an offset is one rotation for all positions, so it is
learned once), four heads, and larger initial weights (at 0.02, attention over 128 features starts
flat). Results are in docs/reference-runs.md.

`--config=quickstart:modern` takes ModernBERT's blocks instead: norms before the blocks, RoPE, a
gated feed-forward, no biases. `--config=quickstart:tuned` adds a share of masks that falls from 30
to 15 % and a constant rate with a cooldown: the best of the steps in docs/reference-runs.md.
transformers has no class for such models of sentence pairs.
"""

from bert import get_config as bert
from ml_collections import ConfigDict


def get_config(variant: str = "bert") -> ConfigDict:
    if variant not in ("bert", "modern", "tuned"):
        raise ValueError(f"unknown variant {variant!r}: use bert, modern or tuned")
    config = bert("tiny")
    config.steps = 4_000
    config.log_every = 50
    eighth = (config.get_oneway_ref("steps") + 7) // 8  # at least 1
    config.eval_every = eighth
    config.checkpoint_every = eighth

    model = config.model
    model.vocab_size = 8_192
    model.num_heads = 4
    model.max_position_embeddings = 128
    model.position_embedding.name = "sinusoidal"
    model.initializer_range = 0.06

    numerics = config.numerics
    numerics.hidden_dropout = 0.0
    numerics.attention_dropout = 0.0
    numerics.compute_dtype = "float32"
    numerics.scan_layers = False
    numerics.remat = "none"

    data = config.data
    data.store = "workdir/quickstart/store"
    data.max_seq_length = 32
    data.batch_size = 64
    config.masking.max_predictions_per_seq = data.get_oneway_ref("max_seq_length") * 3 // 20 + 1
    data.packing = False  # rows of long documents are full without it

    optimizer = config.optimizer
    optimizer.learning_rate = 1.5e-3
    optimizer.warmup_steps = config.get_oneway_ref("steps") // 20
    optimizer.bias_correction = True
    if variant != "bert":
        set_modern_blocks(config)
    if variant == "tuned":
        set_falling_masks(config)
        set_cooldown(config)
    return config


def set_modern_blocks(config: ConfigDict) -> None:
    """Blocks as in modernbert.py, of about as many parameters, and the rate that suits them."""
    model = config.model
    model.position_embedding.name = "rope"
    model.norm_position, model.norm_bias = "pre", False
    model.first_norm, model.final_norm = False, True
    model.layer_norm_eps = 1e-5
    model.feed_forward, model.hidden_act, model.intermediate_size = "glu", "gelu", 352
    model.attention_bias = model.feed_forward_bias = model.head_bias = False
    model.scaled_output_init = True
    config.optimizer.learning_rate = 3e-3


def set_falling_masks(config: ConfigDict) -> None:
    """Masks of 30 % of the tokens at first and of 15 % at the end; scores stay those of 15 %."""
    masking = config.masking
    masking.masked_lm_prob, masking.final_masked_lm_prob = 0.3, 0.15
    masking.heldout_masked_lm_prob = 0.15
    masking.max_predictions_per_seq = config.data.get_oneway_ref("max_seq_length") * 5 // 16


def set_cooldown(config: ConfigDict) -> None:
    """A constant rate, and 1 - sqrt over the last 40 % of the steps."""
    cooldown = {"name": "cooldown", "share": 0.4, "after": {"name": "one_minus_sqrt"}}
    config.optimizer.schedule = ConfigDict(cooldown)

"""BERT pretraining with the published sizes and Google's recipe.

    bert-jax pretrain --config=configs/bert.py:base --workdir=runs/base \\
        --config.data.store=stores/wikipedia

The argument picks the size: tiny, mini, small, medium, base (default) or large. Every other recipe
starts from this page and changes what it needs.

Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805; small sizes: Turc et al. 2019,
https://arxiv.org/abs/1908.08962. Google trained base and large for 1 M steps of 256 sequences:
900 k steps of 128 tokens and 100 k of 512.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

SIZES = {  # layers, hidden, heads, FFN
    "tiny": (2, 128, 2, 512),
    "mini": (4, 256, 4, 1024),
    "small": (4, 512, 8, 2048),
    "medium": (8, 512, 8, 2048),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}


def get_config(size: str = "base") -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: use one of {', '.join(SIZES)}")
    layers, hidden, heads, intermediate = SIZES[size]
    config = ConfigDict()
    config.init_from = ""
    config.init_missing_heads = False
    config.seed = 0
    config.rng = "threefry"
    config.steps = 1_000_000
    config.phases = ()
    config.budget_hours = 0.0
    config.target_mlm_accuracy = 0.0
    config.target_rows = 0
    config.log_every = 100
    config.eval_every = 10_000
    config.eval_batches = 0
    config.checkpoint_every = 5_000
    config.keep_checkpoints = 3

    config.model = model = ConfigDict()
    model.vocab_size = 30_522
    model.num_layers = layers
    model.hidden_size = hidden
    model.num_heads = heads
    model.intermediate_size = intermediate
    model.max_position_embeddings = 512
    model.type_vocab_size = 2
    model.hidden_act = "gelu_tanh"
    model.position_embedding = "learned"
    model.hidden_dropout = 0.1
    model.attention_dropout = 0.1
    model.layer_norm_eps = 1e-12
    model.initializer_range = 0.02
    model.compute_dtype = "bfloat16"
    model.attention = "auto"
    # Scanned layers compile in a fifth of the time; unrolled ones, with remat="none", run faster
    # (docs/scaling.md). A scan that keeps only products takes less memory and fewer cycles.
    model.scan_layers = True
    model.remat = "dots"

    config.data = data = ConfigDict()
    data.store = ""
    data.batch_size = 256
    data.max_seq_length = 128
    data.pairs = "nsp"
    data.short_seq_prob = 0.1
    data.packing = True
    data.masking = "token"
    data.masked_lm_prob = 0.15
    derive_from_length(data)

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"
    optimizer.learning_rate = 1e-4
    optimizer.warmup_steps = config.get_oneway_ref("steps") // 100
    optimizer.schedule = "linear"
    optimizer.poly_power = 1.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-6
    optimizer.bias_correction = False
    optimizer.weight_decay = 0.01
    optimizer.clip_norm = 1.0
    optimizer.gradient_accumulation = 1

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "zero1": True})
    return config


def derive_from_length(fields: ConfigDict) -> None:
    """Lets what a row has room for follow `max_seq_length`, until it is set."""
    length = fields.get_oneway_ref("max_seq_length")
    fields.max_examples_per_row = length // 33 + 1
    fields.max_predictions_per_seq = length * 20 // 128  # 20 at 128 tokens and 80 at 512


def set_phases(config: ConfigDict, *phases: Mapping[str, Any]) -> None:
    """Trains one phase after another, each with moments and parameters of the one before.

    Args:
      config: to change.
      phases: each with steps, batch_size, max_seq_length, learning_rate and gradient_accumulation.
    """
    config.phases = tuple(map(ConfigDict, phases))
    for phase in config.phases:
        derive_from_length(phase)
        phase.warmup_steps = phase.get_oneway_ref("steps") // 100
    config.steps = sum(phase.get_oneway_ref("steps") for phase in config.phases)

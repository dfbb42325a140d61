"""Ettin: the ModernBERT recipe for six sizes, from 17 M to 1 B parameters.

    bert-jax pretrain --config=ettin:17m --workdir=runs/ettin_17m --config.data.store=stores/web

The argument picks the size: 17m, 32m, 68m, 150m (default), 400m or 1b.

Source: Weller et al. 2025, https://arxiv.org/abs/2507.11412, and
https://github.com/JHU-CLSP/ettin-encoder-vs-decoder, pretraining/configs/standard: sizes, rates,
decay and warmup of each size; the later phases of base, whose last one starts at half the peak.
Their local layers take the larger RoPE base too. Batches grow over the first 3 to 125 B tokens,
from a microbatch of each of 8 devices, as in the ModernBERT recipe.

Cost: 1.8e21 FLOPs for 150m (`bert_jax.report.flops`, full rows).
"""

from ml_collections import ConfigDict
from modernbert import blocks, train

SIZES = {  # layers, hidden, heads, features inside the gated feed-forward
    "17m": (7, 256, 4, 384),
    "32m": (10, 384, 6, 576),
    "68m": (19, 512, 8, 768),
    "150m": (22, 768, 12, 1152),
    "400m": (28, 1024, 16, 2624),
    "1b": (28, 1792, 28, 3840),
}
OPTIMIZATION = {  # peak learning rate, tokens of warmup, share of the parameters that a step decays
    "17m": (3e-3, 4e9, 3e-4),
    "32m": (3e-3, 4e9, 3e-4),
    "68m": (3e-3, 3e9, 3e-4),
    "150m": (8e-4, 3e9, 1e-5),
    "400m": (5e-4, 2e9, 1e-5),
    "1b": (5e-4, 2e9, 5e-5),
}
GROWTH = {  # rows of the first batch, tokens in which batches grow
    "17m": (1_152, 125e9),
    "32m": (1_024, 100e9),
    "68m": (768, 75e9),
    "150m": (576, 50e9),
    "400m": (384, 10e9),
    "1b": (192, 3e9),
}


def get_config(size: str = "150m") -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: use one of {', '.join(SIZES)}")
    config = blocks(*SIZES[size])
    peak, warmup_tokens, decay = OPTIMIZATION[size]
    train(
        config,
        peak=peak,
        warmup_tokens=warmup_tokens,
        growth=GROWTH[size],
        decay=decay,
        long_local_theta=160_000.0,
    )
    return config

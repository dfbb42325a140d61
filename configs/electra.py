"""ELECTRA: a model that finds the words which a smaller masked LM has replaced.

    bert-jax pretrain --config=electra:small --workdir=runs/electra \\
        --config.data.store=stores/openwebtext

The argument picks the size: small (default), base or large. The workdir is the model, which reads
text; `bert-jax convert` also writes the generator.

Source: Clark et al. 2020, https://arxiv.org/abs/2003.10555, table 6 (steps, learning rates, batches
of base and large), and https://github.com/google-research/electra, configure_pretraining.py,
run_pretraining.py and pretrain/pretrain_helpers.py. Of the chosen tokens 85 % are hidden from the
generator and 15 % stay. Nine of ten of their examples are two segments of a text with [SEP]
between, and one of twenty is cut at a random length; ours are one segment, and one of ten is short.
Their rate is the product of warmup and decay; ours follows the decay once the warmup is over.

Cost: 1.1e18 FLOPs for small (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from ml_collections import ConfigDict

# layers, hidden, heads, features inside the feed-forward, embedding, generator, masked share,
# tokens of a row, rows, steps, rate
SIZES = {
    "small": (12, 256, 4, 1_024, 128, 1 / 4, 0.15, 128, 128, 1_000_000, 5e-4),
    "base": (12, 768, 12, 3_072, None, 1 / 3, 0.15, 512, 256, 766_000, 2e-4),
    "large": (24, 1_024, 16, 4_096, None, 1 / 4, 0.25, 512, 2_048, 400_000, 2e-4),
}


def get_config(size: str = "small") -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: use one of {', '.join(SIZES)}")
    layers, hidden, heads, inner, embedding, share, masked, length, rows, steps, rate = SIZES[size]
    config = bert()
    config.steps = steps
    model = config.model
    model.num_layers, model.hidden_size, model.num_heads = layers, hidden, heads
    model.intermediate_size = inner
    model.embedding_size = embedding
    model.hidden_act = "gelu"
    model.pooler = "gelu"
    config.data.batch_size = rows
    config.data.max_seq_length = length
    config.data.pairs = "none"
    masking = config.masking
    masking.masked_lm_prob = masked
    masking.mask_share, masking.random_share = 0.85, 0.0
    per_thousand = round(masked * 1_000) + 5
    masking.max_predictions_per_seq = (
        config.data.get_oneway_ref("max_seq_length") * per_thousand // 1_000
    )
    config.objective.name = "replaced_token"
    config.objective.generator_size = share
    config.objective.weight = 50.0

    optimizer = config.optimizer
    optimizer.learning_rate = rate
    optimizer.warmup_steps = config.get_oneway_ref("steps") * 10_000 // steps
    return config

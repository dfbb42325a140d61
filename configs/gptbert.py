"""GPT-BERT: an encoder with layer mixing, gated values and relative positions, for little text.

    bert-jax pretrain --config=gptbert:small --workdir=runs/gptbert \\
        --config.data.store=stores/babylm

The argument picks the size: small (default; 10 M words) or base (100 M words). Use a vocabulary of
8,192 or 16,384 byte-level pieces (`bert-jax prepare --tokenizer=bpe`).

Source: Charpentier and Samuel 2024, https://arxiv.org/abs/2410.24159, and
https://github.com/ltgoslo/gpt-bert, configs/, pretraining/model_extra.py, train_10m.py,
train_100m.py, dataset.py.

One example of 16 is causal, at random; theirs are whole rows, always as many. Left out: their
rows have 256 tokens from 70 % of the steps and 512 from 90 %, in batches of as many tokens; here
128. Their cosine would reach its floor at the last step, ours does where the last 1.6 % begin, in
which both fall to 0. Their spans have 1 to 3 pieces, ours 1 to 3 words, each with equal
probability. Their head has dropout, and the exact GELU.

Cost: 3.6e18 FLOPs for small (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from ml_collections import ConfigDict

SIZES = {  # hidden, heads, features inside the gated feed-forward, vocabulary, steps, rate
    "small": (384, 6, 1_280, 8_192, 7_812, 1.41e-2),
    "base": (768, 12, 2_560, 16_384, 15_625, 1e-2),
}


def get_config(size: str = "small") -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: use one of {', '.join(SIZES)}")
    hidden, heads, inner, vocabulary, steps, rate = SIZES[size]
    config = bert()
    config.steps = steps
    config.checkpoint_every = 1_000
    model = config.model
    model.vocab_size = vocabulary
    model.num_layers, model.hidden_size, model.num_heads = 12, hidden, heads
    model.intermediate_size = inner
    model.type_vocab_size = 0
    model.feed_forward = "glu"
    model.position_embedding.name = "relative"
    model.norm_position = "pre"
    model.norm_scale = model.norm_bias = False
    model.layer_norm_eps = 1e-5
    model.inner_norm = model.final_norm = True
    model.feed_forward_bias = False
    model.value_gate = model.layer_mixing = True
    model.initializer_range = (2 / (5 * hidden)) ** 0.5
    model.depth_scaled_init = True

    config.data.batch_size = 32_768
    config.data.start_batch_size = 8_192
    config.data.growth_steps = config.get_oneway_ref("steps")
    config.data.max_seq_length = 128
    config.data.pairs = "none"
    config.data.short_seq_prob = 0.0
    masking = config.masking
    masking.name = "span"
    masking.lengths, masking.max_words = "uniform", 3
    masking.masked_lm_prob, masking.final_masked_lm_prob = 0.3, 0.15
    masking.heldout_masked_lm_prob = 0.15
    masking.max_predictions_per_seq = config.data.get_oneway_ref("max_seq_length") * 3 // 10
    config.objective.name = "hybrid"
    config.objective.causal_share = 1 / 16
    config.objective.z_loss = 1e-4

    optimizer = config.optimizer
    optimizer.name = "lamb"
    optimizer.learning_rate = rate
    optimizer.b2, optimizer.eps = 0.98, 1e-8
    optimizer.weight_decay, optimizer.clip_norm = 0.1, 2.0
    optimizer.ema_decay = 0.999
    optimizer.warmup_steps = config.get_oneway_ref("steps") * 16 // 1_000
    cosine = {"name": "cosine", "floor": 0.1}  # after the warmup, up to the last 1.6 %
    joined = {"name": "cooldown", "share": 0.984, "after": cosine}
    optimizer.schedule = ConfigDict({"name": "cooldown", "share": 0.016, "before": joined})
    return config

"""Cramming: the best BERT that one GPU, or one TPU, trains in a day.

    bert-jax pretrain --config=crammed --workdir=runs/crammed --config.data.store=stores/pile

The budget is 24 hours; the rate rises for three quarters of it and falls to 0. The vocabulary has
32,768 pieces of WordPiece.

Source: Geiping and Goldstein 2023, https://arxiv.org/abs/2212.14034, and
https://github.com/JonasGeiping/cramming, cramming/config/arch/crammed-bert.yaml and
train/bert-o4.yaml. Theirs starts at a quarter of the peak; here the rate rises from 0. Theirs grows
the batch over 60 % of the budget, by the clock, so its rows depend on the machine; here it has its
full size from the start, or grows by steps with `data.start_batch_size`. Their factor of
the sinusoidal positions is learned from 0.036, ours stays at 0.02, as large as the embeddings.

Cost: 24 hours. A step is 6.5e14 FLOPs (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = bert()
    config.rng = "rbg"  # cheapest random bits
    config.budget_hours = 24.0
    config.steps = 900_000  # upper bound; the budget ends the run
    model = config.model
    model.vocab_size = 32_768
    model.num_layers = 16
    model.intermediate_size = 1_536  # theirs counts both projections
    model.max_position_embeddings = 128
    model.type_vocab_size = 0
    model.hidden_act = "gelu"
    model.feed_forward = "glu"
    model.position_embedding.name = "sinusoidal"
    model.norm_position = "pre"
    model.final_norm = True
    model.attention_bias = model.feed_forward_bias = False
    model.head_bias = model.decoder_bias = False
    model.head_transform = False
    config.numerics.hidden_dropout = 0.0
    config.numerics.attention_dropout = 0.0
    config.data.batch_size = 8_192
    config.data.max_seq_length = 128
    config.data.pairs = "none"
    config.data.short_seq_prob = 0.0
    config.masking.masked_lm_prob = 0.25
    length = config.data.get_oneway_ref("max_seq_length")
    config.masking.max_predictions_per_seq = length // 4

    optimizer = config.optimizer
    optimizer.learning_rate = 1e-3
    optimizer.warmup_steps = config.get_oneway_ref("steps") * 3 // 4
    optimizer.schedule = ConfigDict({"name": "cooldown", "share": 0.25})
    optimizer.b2, optimizer.eps = 0.98, 1e-12
    optimizer.bias_correction = True
    optimizer.clip_norm = 0.5
    return config

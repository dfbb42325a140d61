"""MosaicBERT-base: BERT with ALiBi and a gated feed-forward; 70,000 steps of 4,096 short rows.

    bert-jax pretrain --config=mosaicbert --workdir=runs/mosaicbert --config.data.store=stores/c4

Source: Portes et al. 2023, https://arxiv.org/abs/2312.17482, and
https://github.com/mosaicml/examples,
examples/benchmarks/bert/yamls/main/mosaic-bert-base-uncased.yaml. Their decay is a share of the
parameters in each step, ours of the learning rate, so it is divided by the peak.

Cost: 2.7e19 FLOPs (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = bert()
    config.steps = 70_000
    config.model.hidden_act = "gelu"
    config.model.feed_forward = "glu"
    config.model.position_embedding.name = "alibi"
    config.numerics.attention_dropout = 0.0
    config.data.batch_size = 4_096
    config.data.max_seq_length = 128
    config.data.pairs = "none"
    config.masking.masked_lm_prob = 0.3
    config.masking.heldout_masked_lm_prob = 0.15
    length = config.data.get_oneway_ref("max_seq_length")
    config.masking.max_predictions_per_seq = length * 3 // 10

    optimizer = config.optimizer
    optimizer.learning_rate = 5e-4
    optimizer.schedule.floor = 0.02
    optimizer.warmup_steps = config.get_oneway_ref("steps") * 6 // 100
    optimizer.b2 = 0.98
    optimizer.bias_correction = True
    optimizer.weight_decay = 1e-5 / 5e-4
    optimizer.clip_norm = 0.0
    return config

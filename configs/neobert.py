"""NeoBERT: 28 narrow layers with RMSNorm, SwiGLU and RoPE; 1 M steps of 1,024 tokens, then 4,096.

    bert-jax pretrain --config=neobert --workdir=runs/neobert --config.data.store=stores/web

Rows are packed; there are no sentence pairs. The rate falls to a tenth in the first 900,000 steps
and stays there.

Source: Le Breton et al. 2025, https://arxiv.org/abs/2502.19587, and
https://github.com/chandar-lab/NeoBERT, conf/ and jobs/. 20 % of the tokens are predicted, all of
them from [MASK], and all parameters decay.

Cost: 3.3e21 FLOPs (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from bert import set_phases
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = bert()
    model = config.model
    model.num_layers, model.hidden_size, model.num_heads = 28, 768, 12
    model.intermediate_size = 2_048
    model.max_position_embeddings = 4_096
    model.type_vocab_size = 0
    model.hidden_act = "silu"
    model.feed_forward = "glu"
    model.norm = "rms_norm"
    model.norm_position = "pre"
    model.layer_norm_eps = 1e-5
    model.embedding_norm = False
    model.final_norm = True
    model.attention_bias = False
    model.feed_forward_bias = False
    model.head_transform = False
    model.tied_decoder = False
    model.position_embedding.name = "rope"

    config.numerics.hidden_dropout = 0.0
    config.numerics.attention_dropout = 0.0
    config.data.pairs = "none"
    config.data.short_seq_prob = 0.0
    config.masking.masked_lm_prob = 0.2
    config.masking.mask_share, config.masking.random_share = 1.0, 0.0

    optimizer = config.optimizer
    optimizer.decay_all = True
    optimizer.b2 = 0.95
    optimizer.eps = 1e-8
    optimizer.bias_correction = True
    cosine = {"name": "cosine", "floor": 0.1}
    long_rows = {"batch_size": 512, "max_seq_length": 4_096}
    short_rows = {"batch_size": 2_048, "max_seq_length": 1_024}
    rest = {"learning_rate": 1e-5, "schedule": {"name": "constant"}}
    set_phases(
        config,
        {
            "steps": 900_000,
            "data": short_rows,
            "optimizer": {"learning_rate": 1e-4, "schedule": cosine},
        },
        {"steps": 100_000, "data": short_rows, "optimizer": rest},
        {"steps": 50_000, "data": long_rows, "optimizer": rest},
    )
    for phase, warmup in zip(config.phases, (2_000, 0, 0)):
        phase.optimizer.warmup_steps = phase.get_oneway_ref("steps") * warmup // phase.steps
        length = phase.data.get_oneway_ref("max_seq_length")
        phase.masking.max_predictions_per_seq = length * 2 // 10
    return config

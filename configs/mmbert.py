"""mmBERT-base: ModernBERT for 1,833 languages; masks become fewer from phase to phase.

    bert-jax pretrain --config=mmbert --workdir=runs/mmbert --config.data.store=stores/web

25 % of the tokens are predicted at first, 15 % in long rows, 5 % in the decay. Their phases also
read more and more languages, sampled at temperatures of 0.7, 0.5 and 0.3. With a store of each
language, set `phases[0].data.mixture` and the others, and `phases[0].data.temperature`: weights
of 1 make the shares those sizes to the power of the temperature (docs/data.md). One store for all
phases is `data.store`. The tokenizer is that of Gemma 2, with 256,000 pieces.

Source: Marone et al. 2025, https://arxiv.org/abs/2509.06888, and
https://github.com/JHU-CLSP/mmBERT, configs/mmBERT-base*.yaml; tokens of the first phase: those at
which configs/mmBERT-small-ext.yaml begins. Batches grow over the first 60 B tokens, from a
microbatch of each of 8 devices, as in the ModernBERT recipe. Their decay is a share of the
parameters in each step, ours of the learning rate, so it is divided by the peak.

Cost: 3.4e21 FLOPs (`bert_jax.report.flops`, full rows).
"""

from bert import set_phases
from ml_collections import ConfigDict
from modernbert import ROWS, SIZES, begin, blocks, growing_batches, steps_of

PEAK = 8e-4
GROWTH = (384, 60e9)  # rows of the first batch, tokens in which batches grow


def get_config() -> ConfigDict:
    config = blocks(*SIZES["base"])
    config.model.vocab_size = 256_000
    optimizer = config.optimizer
    optimizer.name = "stable_adamw"
    optimizer.b2, optimizer.eps = 0.95, 1e-8
    optimizer.weight_decay = 8e-5 / PEAK
    optimizer.clip_norm = 0.0
    batch = ROWS * 1_024
    constant = {"learning_rate": PEAK, "schedule": {"name": "constant"}}
    decay = {"learning_rate": PEAK, "schedule": {"name": "one_minus_sqrt", "floor": 0.02}}
    long_rows = {
        "data": {"batch_size": ROWS // 8, "max_seq_length": 8_192},
        "model": {"position_embedding": {"theta": 160_000.0}},
    }
    set_phases(
        config,
        {
            "steps": round(steps_of(2_300e9, *GROWTH)),
            "data": growing_batches(*GROWTH),
            "masking": {"masked_lm_prob": 0.25},
            "optimizer": constant,
        },
        {
            "steps": round(600e9 / batch),
            **long_rows,
            "masking": {"masked_lm_prob": 0.15},
            "optimizer": constant,
        },
        {
            "steps": round(100e9 / batch),
            **long_rows,
            "masking": {"masked_lm_prob": 0.05},
            "optimizer": decay,
        },
    )
    first, *others = config.phases
    begin(first, 3e9, GROWTH)
    for phase in others:
        phase.optimizer.warmup_steps = 0
    for phase, percent in zip(config.phases, (25, 15, 5)):
        length = phase.data.get_oneway_ref("max_seq_length")
        phase.masking.max_predictions_per_seq = length * percent // 100
    return config

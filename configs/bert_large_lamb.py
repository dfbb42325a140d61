"""BERT-large in 8,601 steps of up to 65,536 sequences, by NVIDIA's recipe with LAMB.

    bert-jax pretrain --config=bert_large_lamb --workdir=runs/bert_large_lamb \\
        --config.data.store=stores/wikipedia_and_books

Microbatches hold 4,096 rows of 128 tokens and 1,024 of 512, over all devices; to fit other
machines, change --config.phases[0].optimizer.gradient_accumulation (quoted in zsh).

Source: NVIDIA's BERT for PyTorch,
https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/LanguageModeling/BERT: batch,
rate, steps and warmup of both phases, square-root decay. LAMB: You et al. 2020,
https://arxiv.org/abs/1904.00962. NVIDIA reaches a final loss of 1.24 to 1.27. It restarts the step
count of the bias correction in the second phase; here the count continues with the moments.

Cost: 1.6e20 FLOPs, 1.1e20 of them in the first phase (`bert_jax.report.flops`, full rows). At
NVIDIA's 580 and 210 sequences a second on an A100-80G this is an estimated 12 GPU-days.
"""

from bert import get_config as bert
from bert import set_phases
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = bert("large")
    config.rng = "rbg"  # cheapest random bits; threefry has the same dropout on every mesh
    config.log_every = 10
    config.eval_every = 500
    config.checkpoint_every = 100
    config.model.hidden_act = "gelu"

    config.optimizer.name = "lamb"
    config.optimizer.schedule.name = "poly"
    config.optimizer.schedule.power = 0.5

    set_phases(
        config,
        {
            "steps": 7_038,
            "data": {"batch_size": 65_536, "max_seq_length": 128},
            "optimizer": {"learning_rate": 6e-3, "gradient_accumulation": 16},
        },
        {
            "steps": 1_563,
            "data": {"batch_size": 32_768, "max_seq_length": 512},
            "optimizer": {"learning_rate": 4e-3, "gradient_accumulation": 32},
        },
    )
    first, second = config.phases
    first.optimizer.warmup_steps = first.get_oneway_ref("steps") * 2843 // 10_000
    second.optimizer.warmup_steps = second.get_oneway_ref("steps") * 128 // 1_000
    return config

"""A small BERT in 24 hours on any machine: the learning rate follows the clock.

    bert-jax pretrain --config=bert_small_24h --workdir=runs/bert_small_24h \\
        --config.data.store=stores/wikipedia_and_books

The argument picks another size (:base). The schedule advances with the share of the hours that is
spent, compilation, evaluation and checkpoints included; a stopped run resumes with the hours it has
left. --config.budget_hours=1 shortens the run.

Source: Izsak et al. 2021, How to Train BERT with an Academic Budget,
https://arxiv.org/abs/2104.07705: 4,096 sequences of 128 tokens, no next sentence prediction, Adam
with b2 0.98 at 1e-3, 6 % of the budget is warmup, then linear decay to 0. They train a pre-LN
BERT-large without gradient clipping; this recipe trains the small BERT of Turc et al. 2019,
https://arxiv.org/abs/1908.08962, which is post-LN like the original, with clipping.

Cost: 24 hours. A step is 4.9e13 FLOPs (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from ml_collections import ConfigDict


def get_config(size: str = "small") -> ConfigDict:
    config = bert(size)
    config.rng = "rbg"  # cheapest random bits; threefry has the same dropout on every mesh
    config.budget_hours = 24.0
    config.steps = 10_000_000  # upper bound; the budget ends the run
    config.data.batch_size = 4_096
    config.data.pairs = "none"

    optimizer = config.optimizer
    optimizer.learning_rate = 1e-3
    optimizer.warmup_steps = config.get_oneway_ref("steps") * 6 // 100
    optimizer.b2 = 0.98
    optimizer.bias_correction = True
    return config

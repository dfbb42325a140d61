"""BERT-large by Google's recipe: 900,000 steps of 128 tokens, then 100,000 of 512.

    bert-jax pretrain --config=bert_large --workdir=runs/bert_large \\
        --config.data.store=stores/wikipedia_and_books

Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805, appendix A.2. Only the size differs
from bert_base.py.

Cost: 8.2e19 FLOPs, 5.5e19 of them in the first phase (`bert_jax.report.flops`, full rows). Google:
4 days on 64 TPU chips.
"""

from bert_base import get_config as bert_base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return bert_base("large")

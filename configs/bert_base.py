"""BERT-base by Google's recipe: 900,000 steps of 128 tokens, then 100,000 of 512.

    bert-jax pretrain --config=bert_base --workdir=runs/bert_base \\
        --config.data.store=stores/wikipedia_and_books

A shorter run: --config.phases[0].steps=90000 --config.phases[1].steps=10000 (quoted in zsh); warmup
follows.

Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805, appendix A.2: 256 sequences a step,
Adam at 1e-4, 1 % of the steps are warmup, linear decay, Wikipedia and BooksCorpus. In the paper one
schedule spans both lengths; here each phase has one, so the second restarts at 1e-4.

Cost: 2.4e19 FLOPs, 1.6e19 of them in the first phase (`bert_jax.report.flops`, full rows). Google:
4 days on 16 TPU chips.
"""

from bert import get_config as bert
from bert import set_phases
from ml_collections import ConfigDict


def get_config(size: str = "base") -> ConfigDict:
    config = bert(size)
    config.rng = "rbg"  # cheapest random bits; threefry has the same dropout on every mesh
    optimizer = {"learning_rate": 1e-4, "gradient_accumulation": 1}
    set_phases(
        config,
        {
            "steps": 900_000,
            "data": {"batch_size": 256, "max_seq_length": 128},
            "optimizer": optimizer,
        },
        {
            "steps": 100_000,
            "data": {"batch_size": 256, "max_seq_length": 512},
            "optimizer": optimizer,
        },
    )
    return config

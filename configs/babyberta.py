"""BabyBERTa: a small RoBERTa on child-directed speech, one sentence a row.

    bert-jax pretrain --config=babyberta --workdir=runs/babyberta --config.data.store=stores/childes

Each line of the corpus is a document, so each row holds a sentence. The vocabulary is byte-level
BPE (`bert-jax prepare --tokenizer=bpe --vocab-size=8192`). Masked tokens are never left as they
are.

Source: Huebner et al. 2021, https://aclanthology.org/2021.conll-1.49, and
https://github.com/phueb/BabyBERTa, babyberta/params.py and job.py. Theirs draws ten masks of each
sentence beforehand and passes over the corpus once; here masks are drawn anew in ten epochs: set
`steps` to 10 x sentences / 16 (160,000 as in the paper).

Cost: 1.4e16 FLOPs (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = bert()
    config.steps = 160_000
    model = config.model
    model.vocab_size = 8_192
    model.num_layers, model.hidden_size, model.num_heads = 8, 256, 8
    model.intermediate_size = 1_024
    model.max_position_embeddings = 128
    model.position_embedding.offset = 2
    model.hidden_act = "gelu"
    model.layer_norm_eps = 1e-5
    config.data.batch_size = 16
    config.data.max_seq_length = 128
    config.data.packing = False
    config.data.pairs = "none"
    config.data.short_seq_prob = 0.0
    masking = config.masking
    masking.mask_share, masking.random_share = 0.9, 0.1
    length = config.data.get_oneway_ref("max_seq_length")
    masking.max_predictions_per_seq = length * 15 // 100 + 1

    optimizer = config.optimizer
    optimizer.warmup_steps = config.get_oneway_ref("steps") * 24 // 160
    optimizer.schedule = ConfigDict({"name": "cooldown", "share": 136 / 160})  # linear after warmup
    optimizer.weight_decay = 0.0
    return config

"""RoBERTa: BERT without sentence pairs, on more text and with large batches of long rows.

    bert-jax prepare 'text/*.jsonl' --tokenizer=roberta-base/tokenizer.json --output=stores/roberta
    bert-jax pretrain --config=roberta --workdir=runs/roberta --config.data.store=stores/roberta

The argument picks the size: base (default) or large. The padding of its byte-level BPE has id 1, so
that positions begin at row 2 of their table. A tokenizer of yours has another number of tokens and
perhaps another padding: set model.vocab_size and model.position_embedding.offset (padding + 1).

Source: Liu et al. 2019, https://arxiv.org/abs/1907.11692, tables 9 and 10 (8K is 8,192 here). The
decay counts from step 0, as in all recipes; theirs begins at the peak.

Cost: 1.3e21 FLOPs for base (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from ml_collections import ConfigDict

PEAK = {"base": 6e-4, "large": 4e-4}
WARMUP = {"base": 24_000, "large": 30_000}  # steps of 500,000


def get_config(size: str = "base") -> ConfigDict:
    if size not in PEAK:
        raise ValueError(f"unknown size {size!r}: use one of {', '.join(PEAK)}")
    config = bert(size)
    config.steps = 500_000
    model = config.model
    model.vocab_size = 50_265
    model.type_vocab_size = 1
    model.position_embedding.offset = 2
    model.hidden_act = "gelu"
    model.layer_norm_eps = 1e-5
    config.data.batch_size = 8_192
    config.data.max_seq_length = 512
    config.data.pairs = "none"
    config.data.short_seq_prob = 0.0
    length = config.data.get_oneway_ref("max_seq_length")
    config.masking.max_predictions_per_seq = length * 15 // 100

    optimizer = config.optimizer
    optimizer.learning_rate = PEAK[size]
    optimizer.warmup_steps = config.get_oneway_ref("steps") * WARMUP[size] // 500_000
    optimizer.b2 = 0.98
    optimizer.bias_correction = True
    optimizer.clip_norm = 0.0
    return config

"""ESM-2: an encoder of proteins, from 8 M to 650 M parameters; one token is one amino acid.

    bert-jax pretrain --config=esm2:8m --workdir=runs/esm2_8m --config.data.store=stores/uniref50

The argument picks the size: 8m, 35m, 150m or 650m (default). The vocabulary has 33 tokens
(`bert-jax prepare --tokenizer=FILE` with a tokenizer.json of them); if its [MASK] is not 32, set
`model.token_dropout_id`.

Source: Lin et al. 2023, https://doi.org/10.1126/science.ade2574 (blocks, sizes, 500,000 updates of
2 M tokens), and https://github.com/facebookresearch/esm, esm/model/esm2.py, esm/modules.py. The
rate is that of the paper's supplement: 4e-4 after 2,000 steps, then a line to a tenth at 90 % of
the run; here the line ends with the run. Theirs samples a protein of each cluster of UniRef50 anew;
here the store has the proteins.

Cost: 4.6e21 FLOPs for 650m (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from ml_collections import ConfigDict

SIZES = {  # layers, hidden; all have 20 heads
    "8m": (6, 320),
    "35m": (12, 480),
    "150m": (30, 640),
    "650m": (33, 1_280),
}


def get_config(size: str = "650m") -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: use one of {', '.join(SIZES)}")
    config = bert()
    config.steps = 500_000
    model = config.model
    model.vocab_size = 33
    model.num_layers, model.hidden_size = SIZES[size]
    model.num_heads = 20
    model.intermediate_size = 4 * model.hidden_size
    model.max_position_embeddings = 1_026
    model.type_vocab_size = 0
    model.token_dropout_id = 32
    model.hidden_act = "gelu"
    model.position_embedding.name = "rope"
    model.norm_position = "pre"
    model.layer_norm_eps = 1e-5
    model.embedding_norm = False
    model.final_norm = True
    config.numerics.hidden_dropout = 0.0
    config.numerics.attention_dropout = 0.0
    config.data.batch_size = 2_048
    config.data.max_seq_length = 1_024
    config.data.pairs = "none"
    config.data.short_seq_prob = 0.0
    length = config.data.get_oneway_ref("max_seq_length")
    config.masking.max_predictions_per_seq = length * 15 // 100 + 1

    optimizer = config.optimizer
    optimizer.learning_rate = 4e-4
    line = {"name": "linear", "floor": 0.1}
    optimizer.schedule = ConfigDict(
        {"name": "cooldown", "share": 0.1, "before": line, "after": {"name": "constant"}}
    )
    optimizer.warmup_steps = config.get_oneway_ref("steps") * 2_000 // config.steps
    optimizer.b2, optimizer.eps = 0.98, 1e-8
    optimizer.bias_correction = True
    optimizer.clip_norm = 0.0
    return config

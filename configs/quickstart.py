"""A small BERT on the State of the Union addresses, in minutes on two CPU cores.

bash launch/quickstart.sh
"""

from bert import get_config as bert
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = bert("tiny")
    config.steps = 2_800
    config.log_every = 50
    config.eval_every = config.get_oneway_ref("steps") // 8
    config.checkpoint_every = config.get_oneway_ref("steps") // 8

    config.model.vocab_size = 8_192
    config.model.max_position_embeddings = 128
    # Small matrices need larger weights: at 0.02 the attention of so narrow a model starts out flat
    # and the loss stays at the unigram plateau for the whole run.
    config.model.initializer_range = 0.06
    config.model.hidden_dropout = 0.0
    config.model.attention_dropout = 0.0
    config.model.compute_dtype = "float32"
    config.model.scan_layers = False

    config.data.store = "workdir/quickstart/store"
    config.data.batch_size = 16
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = config.get_oneway_ref("steps") // 20
    config.optimizer.bias_correction = True
    return config

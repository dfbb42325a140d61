"""A small BERT on the State of the Union addresses, in minutes on two CPU cores.

bash launch/quickstart.sh
"""

from bert import get_config as bert
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = bert("tiny")
    config.steps = 1_000
    config.log_every = 50
    config.eval_every = 250
    config.checkpoint_every = 250

    config.model.vocab_size = 8_192
    config.model.max_position_embeddings = 128
    config.model.hidden_dropout = 0.0
    config.model.attention_dropout = 0.0
    config.model.compute_dtype = "float32"

    config.data.store = "workdir/quickstart/store"
    config.data.batch_size = 32
    config.optimizer.learning_rate = 2e-3
    config.optimizer.bias_correction = True
    return config

"""A small vocabulary of words without meaning, and a directory with an encoder that reads it."""

import jax
from etils import epath
from portables import make_config

from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.interop.portable import Portable
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.model import build_model

WORDS = [f"w{index}" for index in range(40)]
WORDPIECE = WordPiece((*SPECIAL_TOKENS, *WORDS, ".", "?"), lowercase=True)


def write_encoder(path: epath.Path) -> None:
    """Writes an encoder of random weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    sizes |= {"vocab_size": len(WORDPIECE.vocab), "initializer_range": 0.1}
    architecture, numerics = make_config(**sizes)
    model = build_model(architecture, numerics, parts=("pooler", "masked_lm"))
    params = jax.device_get(model.init(jax.random.key(0)))
    write_workdir(path, Portable(architecture, numerics, WORDPIECE, params))

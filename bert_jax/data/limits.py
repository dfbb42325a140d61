"""What a token store can be prepared with.

This module loads nothing, so options are checked before anything is loaded. The messages name the
flags of `bert-jax prepare`.
"""

from bert_jax.errors import UserError

TOKENIZERS = ("wordpiece", "bpe", "unigram", "characters")  # kinds that can be trained


def check_heldout(share: float) -> None:
    """Raises UserError unless `share` is between 0 and 1."""
    if not 0 < share < 1:
        raise UserError(f"--heldout: {share} is not between 0 and 1; try 0.05")


def check_workers(workers: int) -> None:
    """Raises UserError unless `workers` is positive."""
    if workers < 1:
        raise UserError(f"--workers: {workers}; at least one is needed")

"""Which numbers a token store can be prepared with.

Loads nothing, so that a number is checked before anything is loaded. The messages name the
flags of `bert-jax prepare`.
"""

from bert_jax.errors import UserError


def check_heldout(share: float) -> None:
    """Raises UserError if this is no share of the documents."""
    if not 0 < share < 1:
        raise UserError(f"--heldout: {share} is no share between 0 and 1; take 0.05, say")


def check_workers(workers: int) -> None:
    """Raises UserError if so many processes cannot tokenise."""
    if workers < 1:
        raise UserError(f"--workers: {workers}; at least one is needed")

"""Uses a trained model on text."""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.parallel.mesh import make_mesh
from bert_jax.train.build import Trained, load_trained

MASK = "[MASK]"
TEXTS_AT_ONCE = 64


class Guess(NamedTuple):
    """A word for a mask, with its probability."""

    token: str
    probability: float


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bert-jax predict", description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    task = tasks.add_parser(
        "fill-mask",
        help="guess the words behind [MASK]",
        description="Guesses the words behind every [MASK] of a text.",
        epilog="example: bert-jax predict fill-mask --workdir=runs/quickstart "
        '"The president of the United [MASK]."',
    )
    task.add_argument("--workdir", required=True, metavar="DIR", help="of the training run")
    task.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: newest)")
    task.add_argument("--top-k", type=int, default=5, metavar="K", help="guesses for each mask")
    task.add_argument("texts", nargs="*", metavar="TEXT", help="default: lines of standard input")
    arguments = parser.parse_args(argv)

    texts = arguments.texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise UserError("no TEXT on the command line nor on standard input")
    trained = load_trained(epath.Path(arguments.workdir), make_mesh(), arguments.step)
    if not 1 <= arguments.top_k <= len(trained.wordpiece.vocab):
        raise UserError(f"--top-k={arguments.top_k}: from 1 to {len(trained.wordpiece.vocab)}")
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = texts[start : start + TEXTS_AT_ONCE]
        for text, masks in zip(batch, fill_mask(trained, batch, arguments.top_k)):
            print(text)
            for guesses in masks:
                print("   " + "  ".join(f"{g.token} {g.probability:.1%}" for g in guesses))


def fill_mask(trained: Trained, texts: Sequence[str], top_k: int = 5) -> list[list[list[Guess]]]:
    """Guesses the words behind every [MASK] of every text.

    Args:
      trained: model, parameters and vocabulary.
      texts: each with at least one "[MASK]".
      top_k: guesses for each mask, most probable first.

    Raises:
      UserError: a text has no [MASK] or is longer than the model's positions.
    """
    wordpiece = trained.wordpiece
    rows = [_encode_masked(trained, text) for text in texts]
    shape = (len(rows), max(map(len, rows)))
    input_ids = np.full(shape, wordpiece.pad_id, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        segment_ids[index, : len(row)] = 1
    positions = [np.flatnonzero(row == wordpiece.mask_id) for row in input_ids]
    masked = np.zeros((len(rows), max(map(len, positions))), np.int32)
    for index, found in enumerate(positions):
        masked[index, : len(found)] = found

    graphdef = trained.model.graphdef
    probabilities, tokens = jax.device_get(
        _best_words(trained.params, input_ids, segment_ids, masked, graphdef, top_k)
    )
    return [
        [
            [Guess(wordpiece.vocab[t], float(p)) for t, p in zip(tokens[i, j], probabilities[i, j])]
            for j in range(len(found))
        ]
        for i, found in enumerate(positions)
    ]


@functools.partial(jax.jit, static_argnames=("graphdef", "top_k"))
def _best_words(params, input_ids, segment_ids, masked, graphdef, top_k):
    """Probabilities and ids [rows, masks, top_k]; compiled once for each shape."""
    logits, _ = nnx.merge(graphdef, params)(
        input_ids,
        jnp.zeros_like(input_ids),
        jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape),
        segment_ids,
        masked,
        jnp.zeros((input_ids.shape[0], 1), jnp.int32),
    )
    return jax.lax.top_k(jax.nn.softmax(logits), top_k)


def _encode_masked(trained: Trained, text: str) -> list[int]:
    wordpiece, limit = trained.wordpiece, trained.config.model.max_position_embeddings
    pieces = text.split(MASK)
    if len(pieces) == 1:
        raise UserError(f"no {MASK} in {text!r}: put one where a word is to be guessed")
    ids = [wordpiece.cls_id]
    for index, piece in enumerate(wordpiece.encode(pieces)):
        ids += ([wordpiece.mask_id] if index else []) + list(piece)
    ids.append(wordpiece.sep_id)
    if len(ids) > limit:
        raise UserError(
            f"{text[:40]!r}... has {len(ids)} tokens, the model has {limit} positions: shorten it"
        )
    return ids

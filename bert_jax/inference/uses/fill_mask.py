"""Guesses of masked words."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from bert_jax.data.packing import Batch, Example
from bert_jax.errors import UserError
from bert_jax.inference import programs
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import checked
from bert_jax.model.heads import MASKED_LM


class Guess(NamedTuple):
    """A word for a mask, with its probability.

    The text of the token tells where words begin: "##ing" in WordPiece continues one, and " of" in
    tokenizers whose pieces hold spaces begins one.
    """

    token: str
    probability: float


def fill_mask(runner: Runner, texts: Iterable[str], top_k: int) -> Iterator[list[list[Guess]]]:
    """For each text, for each mask, the guesses; see `TrainedBert.fill_mask`."""
    runner.require(*MASKED_LM.parts(runner.architecture))
    pieces, mask_id = runner.tokenizer.pieces, runner.tokenizer.mask_id
    if not 1 <= top_k <= len(pieces):
        raise UserError(f"top_k={top_k}: must be from 1 to {len(pieces)}")
    program = runner.program(programs.best_words, "mesh", "top_k")

    def start(batch: Batch) -> tuple[jax.Array, jax.Array]:
        row, column = np.nonzero(batch.rows["input_ids"] == mask_id)
        slot = np.arange(len(row)) - np.searchsorted(row, row)
        # As many slots as for texts, unless a row has more masks than that.
        slots = max(batch.rows["cls_positions"].shape[1], 1 << int(slot.max()).bit_length())
        positions = np.zeros((len(batch.rows["input_ids"]), slots), np.int32)
        positions[row, slot] = column
        rows = runner.devices.put(batch, positions=positions)
        return program(runner.params, rows, mesh=runner.devices.mesh, top_k=top_k)

    def finish(batch: Batch, found: tuple[np.ndarray, np.ndarray]) -> Iterator[list[list[Guess]]]:
        masks = batch.rows["input_ids"] == mask_id
        before = np.cumsum(masks, axis=1) - masks  # masks in the row before a token
        probabilities, tokens = found
        for row, start, stop in zip(batch.row, batch.start, batch.stop):
            first = before[row, start]
            slots = range(first, first + masks[row, start:stop].sum())
            yield [
                [
                    Guess(pieces[token], float(probability))
                    for token, probability in zip(tokens[row, slot], probabilities[row, slot])
                ]
                for slot in slots
            ]

    examples = (_tokenize(runner, text) for text in checked(texts, pair=False))
    return runner.devices.run(examples, start, finish)


def _tokenize(runner: Runner, text: str) -> Example:
    tokenizer = runner.tokenizer
    ids = [tokenizer.cls_id, *tokenizer.encode_marked(text), tokenizer.sep_id]
    if tokenizer.mask_id not in ids:
        mask = tokenizer.vocab[tokenizer.mask_id]
        raise UserError(f"no {mask} in {text!r}: put one where a word is to be guessed")
    if len(ids) > runner.limit:
        raise UserError(
            f"{text[:40]!r}... has {len(ids)} tokens, the model has {runner.limit} positions: "
            f"shorten it"
        )
    return Example(np.array(ids, np.int32), len(ids))

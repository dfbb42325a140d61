"""A model and batches of test size."""

import jax.numpy as jnp
import numpy as np

from bert_jax.model.attention import attention
from bert_jax.model.bert import unconstrained
from bert_jax.model.heads import BertWithHeads
from bert_jax.objective.masking import Masking
from bert_jax.train.state import split_model

VOCAB_SIZE = 300
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)


def make_model(constrain=unconstrained, **changes):
    """(graphdef, init) of a pretraining model of two layers."""
    options = {
        "vocab_size": VOCAB_SIZE,
        "num_layers": 2,
        "hidden_size": 32,
        "num_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "position_embedding": "learned",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.2,
        "dtype": jnp.float32,
        "scan_layers": True,
        "remat": "none",
        "attend": attention,
        "constrain": constrain,
        "gather_layer": lambda params: params,
    } | changes
    return split_model(lambda rngs: BertWithHeads(rngs=rngs, **options))


def make_masking(**changes) -> Masking:
    """Ids from 5 on are words; every third one continues a word."""
    ids = np.arange(VOCAB_SIZE)
    options = {
        "strategy": "token",
        "masked_lm_prob": 0.15,
        "max_predictions_per_seq": 20,
        "max_predictions_per_row": 20,
        "mask_id": MASK_ID,
        "is_special": ids < 5,
        "is_continuation": (ids >= 5) & (ids % 3 == 0),
    } | changes
    return Masking(**options)


def make_batch(lengths: list[list[int]], max_seq_length: int = 48, seed: int = 0) -> dict:
    """Rows of examples `[CLS] A [SEP] B [SEP]` of the given lengths, as `Batches.batch` makes them.

    The n-th example counted over all rows has the same tokens, label and id however the examples
    are laid out in rows.
    """
    examples = max(map(len, lengths))
    rows = (len(lengths), max_seq_length)
    batch = {
        name: np.zeros(rows, np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "segment_ids")
    }
    batch["cls_positions"] = np.zeros((len(lengths), examples), np.int32)
    batch["next_sentence_label"] = np.full((len(lengths), examples), -1, np.int32)
    batch["example_ids"] = np.zeros((len(lengths), examples, 2), np.int32)
    number = 0
    for row, row_lengths in enumerate(lengths):
        start = 0
        for example, length in enumerate(row_lengths):
            random = np.random.default_rng((seed, number))
            tokens = random.integers(5, VOCAB_SIZE, length)
            middle = length // 2
            tokens[0], tokens[middle], tokens[-1] = CLS_ID, SEP_ID, SEP_ID
            where = row, slice(start, start + length)
            batch["input_ids"][where] = tokens
            batch["token_type_ids"][where] = np.arange(length) > middle
            batch["position_ids"][where] = np.arange(length)
            batch["segment_ids"][where] = example + 1
            batch["cls_positions"][row, example] = start
            batch["next_sentence_label"][row, example] = random.integers(2)
            batch["example_ids"][row, example] = 0, number
            start += length
            number += 1
    return batch

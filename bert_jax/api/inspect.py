"""Looks into stores: their documents, sentences, pieces, and the examples drawn from them."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from etils import epath

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.batches import Batch
from bert_jax.data.contents import Documents, Lengths, read_documents_of
from bert_jax.data.manifest import SPLITS
from bert_jax.data.sampling import Sampling
from bert_jax.data.split import Split
from bert_jax.data.store import TokenStore
from bert_jax.data.stores import Store, open_store
from bert_jax.data.tfrecords import PremaskedStore
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.objective.masking import mask_tokens

FREQUENT = 20  # pieces that are listed
_ROWS, _BATCHES = 256, 16  # examples that tell the lengths of examples
_PAIRS = {0: "the second part follows the first", 1: "the second part is from elsewhere"}


@dataclass(frozen=True, eq=False)
class Contents:
    """What is in a store.

    Attributes:
      path: where it is.
      summary: its size in one line.
      vocabulary: the vocabulary in one line.
      sizes: of each split, the number of documents, sentences and tokens, or of examples.
      documents: lengths and copies; None if the store has examples only.
      example_lengths: tokens of a sample of its examples, special ones included.
      max_seq_length: the most tokens of these examples.
      counts: int64 [vocab_size], how often each token occurs in the training data.
      frequent: the most frequent tokens, and their shares of all.
      unknown: share of the tokens that are unknown words.
      unused: tokens of the vocabulary, special ones aside, that never occur.
      examples: some examples as readable text: a line about each, and one for each part of it, in
        which [SEEN|TRUE] is a token to predict.
    """

    path: str
    summary: str
    vocabulary: str
    sizes: dict[str, dict[str, int]]
    documents: Documents | None
    example_lengths: Lengths
    max_seq_length: int
    counts: np.ndarray
    frequent: list[tuple[str, float]]
    unknown: float
    unused: int
    examples: list[list[str]]


def inspect(
    stores: Sequence[epath.PathLike], *, max_seq_length: int = 128, num_examples: int = 4
) -> list[Contents]:
    """What is in stores, each read as a whole.

    Examples are drawn and masked as `pretrain` does by default, each in a row of its own; those of
    pre-masked TFRecords are as they are.

    Args:
      stores: folders of token stores, or of pre-masked TFRecords.
      max_seq_length: tokens of a row of examples.
      num_examples: examples that become text.

    Raises:
      UserError: a store is missing or damaged, or has no examples of that length.
    """
    return [_inspect(open_store(path), max_seq_length, num_examples) for path in stores]


def _inspect(store: Store, max_seq_length: int, num_examples: int) -> Contents:
    if isinstance(store, PremaskedStore):
        max_seq_length = store.of_length(max_seq_length).train.max_seq_length
    config, batch = _first_batch(store, max_seq_length)
    lengths = np.zeros(max_seq_length + 1, np.int64)
    stream = store.training_batches(config.data, seed=0, host_rows=np.arange)
    for step in range(min(_BATCHES, -(-stream.rows_per_epoch // _ROWS))):
        sizes = (stream.batch(step)["segment_ids"] > 0).sum(axis=1)
        lengths += np.bincount(sizes, minlength=len(lengths))
    tokenizer, counts = store.tokenizer, store.token_counts
    total = max(1, int(counts.sum()))
    ordinary = np.ones(len(counts), bool)
    ordinary[tokenizer.special_ids] = False
    order = np.argsort(-counts, kind="stable")[:FREQUENT]
    documents = read_documents_of(_splits(store)) if isinstance(store, TokenStore) else None
    return Contents(
        path=str(store.path),
        summary=store.summary,
        vocabulary=tokenizer.description,
        sizes=_sizes(store),
        documents=documents,
        example_lengths=Lengths(lengths),
        max_seq_length=max_seq_length,
        counts=counts,
        frequent=[(tokenizer.pieces[i], counts[i] / total) for i in order.tolist() if counts[i]],
        unknown=counts[tokenizer.unk_id] / total,
        unused=int(np.count_nonzero(ordinary & (counts == 0))),
        examples=[_text(tokenizer, batch, row) for row in _spread(batch, num_examples)],
    )


def _spread(batch: Batch, count: int) -> list[int]:
    """Rows of a batch that hold an example, apart from one another."""
    rows = np.flatnonzero((batch["segment_ids"] > 0).any(axis=1))
    return sorted({int(rows[i * len(rows) // count]) for i in range(count)})


def _splits(store: TokenStore) -> Iterator[Split]:
    for name in SPLITS:
        yield from store.shards[name]


def _sizes(store: Store) -> dict[str, dict[str, int]]:
    if isinstance(store, PremaskedStore):
        return {split.name: {"examples": len(split)} for split in (store.train, store.heldout)}
    assert isinstance(store, TokenStore)
    names = ("documents", "sentences", "tokens")
    counts = store.manifest["splits"]
    return {split: {name: counts[split][name] for name in names} for split in SPLITS}


def _first_batch(store: Store, max_seq_length: int) -> tuple[PretrainConfig, Batch]:
    """A config that the store has batches for, and the first of them, masked."""
    problem: UserError | None = None
    for pairs in ("nsp", "none"):  # documents of one sentence, or a single one, have no pairs
        data = Sampling(batch_size=_ROWS, max_seq_length=max_seq_length, packing=False, pairs=pairs)
        config = PretrainConfig(data=data)
        try:
            stream = store.training_batches(data, seed=0, host_rows=np.arange)
        except UserError as error:
            problem = problem or error
            continue
        batch = stream.batch(0)
        if not store.is_masked:
            masking = config.bound_masking(store.tokenizer)
            mask = functools.partial(mask_tokens, masking=masking, key=jax.random.key(0))
            batch = jax.device_get(jax.jit(mask)(batch))
        return config, batch
    assert problem is not None
    raise problem


def _text(tokenizer: Tokenizer, batch: Batch, row: int) -> list[str]:
    """An example as lines of text."""
    weights = batch["masked_lm_weights"][row] > 0
    places = batch["masked_lm_positions"][row][weights].tolist()
    true = dict(zip(places, batch["masked_lm_ids"][row][weights].tolist()))
    ids, types = batch["input_ids"][row].tolist(), batch["token_type_ids"][row]
    length = int((batch["segment_ids"][row] > 0).sum())
    label = _PAIRS.get(int(batch["next_sentence_label"][row][0]), "one part")
    lines = [f"{length} tokens, {len(true)} to predict; {label}"]
    for part in range(1 + int(types[:length].max(initial=0))):
        words: list[str] = []
        run: list[int] = []
        for place in range(length):
            if types[place] != part:
                continue
            if place in true:
                words.append(tokenizer.decode(run).strip())
                run = []
                hidden = tokenizer.pieces[true[place]].strip()
                seen = tokenizer.pieces[ids[place]].strip()
                is_masked = ids[place] == tokenizer.mask_id
                words.append(f"{{{hidden}}}" if is_masked else f"{{{seen}|{hidden}}}")
            elif ids[place] not in (tokenizer.cls_id, tokenizer.sep_id):
                run.append(ids[place])
        words.append(tokenizer.decode(run).strip())
        lines.append(" ".join(filter(None, words)))
    return lines

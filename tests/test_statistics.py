"""Statistics of pairs and masks on the real corpus, through the code that feeds a training run."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from configured import configured

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.batches import BatchStream
from bert_jax.data.sampling import Plan, plan_epoch
from bert_jax.data.store import TokenStore, open_token_store
from bert_jax.objective.masking import mask_tokens

pytestmark = pytest.mark.core

MAX_PREDICTIONS = {"token": 20, "whole_word": 20, "span": 10}  # a row needs 19


@pytest.fixture(scope="module")
def store(sotu_store) -> TokenStore:
    return open_token_store(sotu_store)


def make_config(store: TokenStore, **data) -> PretrainConfig:
    """Google's recipe, 256 packed rows of 128 tokens, with changes of `config.data`."""
    fields = {"store": store.path, "packing": True} | data
    size = {"model.vocab_size": len(store.tokenizer.vocab)}
    return configured(**size, **{f"data.{name}": value for name, value in fields.items()})


def training_batches(config: PretrainConfig, store: TokenStore) -> BatchStream:
    rows = np.arange(config.data.batch_size)
    return store.training_batches(config.data, seed=config.seed, host_rows=lambda _: rows)


def concatenate(batches) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


class Masked(NamedTuple):
    """8,192 rows of training batches before and after masking, and the predicted positions."""

    strategy: str
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    predicted: np.ndarray  # bool [rows, length]


def mask(store: TokenStore, strategy: str, packing: bool) -> Masked:
    config = make_config(
        store,
        masking=strategy,
        max_predictions_per_seq=MAX_PREDICTIONS[strategy],
        packing=packing,
    )
    masking = config.bound_masking(store.tokenizer)
    batches = training_batches(config, store)
    mask_batch = jax.jit(lambda batch: mask_tokens(batch, masking, jax.random.key(config.seed)))
    parts = [batches.batch(step) for step in range(32)]
    before = concatenate(parts)
    after = concatenate([jax.device_get(mask_batch(part)) for part in parts])
    predicted = np.zeros(before["input_ids"].shape, bool)
    rows, slots = np.nonzero(after["masked_lm_weights"])
    predicted[rows, after["masked_lm_positions"][rows, slots]] = True
    return Masked(strategy, before, after, predicted)


@pytest.fixture(scope="module", params=MAX_PREDICTIONS)
def masked(store, request) -> Masked:
    return mask(store, request.param, packing=True)


def examples(masked: Masked) -> dict[int, tuple[int, np.ndarray]]:
    """Index of an example in its epoch -> its row and positions."""
    slots = np.argwhere(masked.before["next_sentence_label"] >= 0)
    return {
        int(masked.before["example_ids"][row, slot, 1]): (
            row,
            np.flatnonzero(masked.before["segment_ids"][row] == slot + 1),
        )
        for row, slot in slots
    }


def test_no_word_is_unknown(store):
    for split in (store.train, store.heldout):
        assert split.token_counts[store.tokenizer.unk_id] == 0


class Epoch(NamedTuple):
    """All rows of an epoch, the plan behind them, and the example index and label of each pair."""

    rows: dict[str, np.ndarray]
    plan: Plan
    numbers: np.ndarray
    labels: np.ndarray


@pytest.fixture(scope="module")
def epoch(store) -> Epoch:
    config = make_config(store)
    batches = training_batches(config, store)
    steps = -(-batches.rows_per_epoch // config.data.batch_size)
    rows = concatenate([batches.batch(step) for step in range(steps)])
    rows = {name: values[: batches.rows_per_epoch] for name, values in rows.items()}
    plan = plan_epoch(
        store.train.sentences, store.train.documents, config.data, seed=config.seed, epoch=0
    )
    pairs = rows["next_sentence_label"] >= 0
    epochs, numbers = rows["example_ids"][pairs].T
    assert not epochs.any()
    return Epoch(rows, plan, numbers, rows["next_sentence_label"][pairs])


def test_an_epoch_holds_every_example_once(epoch):
    assert sorted(epoch.numbers) == list(range(epoch.plan.num_examples))
    tokens = (epoch.plan.a_length + epoch.plan.b_length + 3).sum()
    assert (epoch.rows["segment_ids"] > 0).sum() == tokens


def test_somewhat_more_than_half_of_the_pairs_are_random(store, epoch):
    """Those that cannot be split are always random; random means from two documents."""
    assert np.array_equal(epoch.labels, epoch.plan.next_sentence_label[epoch.numbers])
    assert 0.5 < epoch.labels.mean() < 0.56
    document_starts = store.train.sentences[store.train.documents]
    a_document, b_document = (
        np.searchsorted(document_starts, starts, side="right")
        for starts in (epoch.plan.a_start, epoch.plan.b_start)
    )
    assert np.array_equal(a_document != b_document, epoch.plan.next_sentence_label == 1)


def test_an_epoch_shows_most_tokens_and_none_twice(store, epoch):
    plan = epoch.plan
    shown = np.zeros(len(store.train.tokens), int)
    follows = plan.next_sentence_label == 0
    for start, length in [
        *zip(plan.a_start, plan.a_length),
        *zip(plan.b_start[follows], plan.b_length[follows]),
    ]:
        shown[start : start + length] += 1
    assert shown.max() == 1
    assert shown.mean() > 0.75  # truncation costs the rest, less with a larger vocabulary


def test_15_percent_of_each_example_are_predicted(masked):
    limit = MAX_PREDICTIONS[masked.strategy]
    lengths, counts = np.array(
        [
            (len(positions), masked.predicted[row, positions].sum())
            for row, positions in examples(masked).values()
        ]
    ).T
    assert counts.tolist() == [min(limit, max(1, round(0.15 * n))) for n in lengths]
    assert counts.max() == min(limit, 19)
    if limit == 20:
        assert counts.sum() / lengths.sum() == pytest.approx(0.15, abs=0.002)
    assert masked.predicted.sum() == counts.sum(), "padding is predicted"


def test_80_percent_are_hidden_10_replaced_10_kept(store, masked):
    seen = masked.after["input_ids"][masked.predicted]
    label = masked.before["input_ids"][masked.predicted]
    hidden = seen == store.tokenizer.mask_id
    assert hidden.mean() == pytest.approx(0.8, abs=0.005)
    assert (seen == label).mean() == pytest.approx(0.1, abs=0.005)
    assert (~hidden & (seen != label)).mean() == pytest.approx(0.1, abs=0.005)
    assert np.array_equal(
        masked.after["input_ids"][~masked.predicted], masked.before["input_ids"][~masked.predicted]
    )


def test_no_special_token_is_predicted_or_drawn(store, masked):
    seen = masked.after["input_ids"][masked.predicted]
    label = masked.before["input_ids"][masked.predicted]
    special = store.tokenizer.special_ids
    assert not np.isin(label, special).any()
    drawn = seen[(seen != label) & (seen != store.tokenizer.mask_id)]
    assert not np.isin(drawn, special).any()
    assert len(np.unique(drawn)) == len(store.tokenizer.vocab) - len(special)


def test_words_are_predicted_whole(store, masked):
    tokens = np.array(store.tokenizer.vocab)[masked.before["input_ids"]]
    continues = np.char.startswith(tokens[:, 1:], "##")
    # A segment that was cut at its front can begin with the rest of a word.
    continues &= ~np.isin(masked.before["input_ids"][:, :-1], store.tokenizer.special_ids)
    together = masked.predicted[:, 1:] == masked.predicted[:, :-1]
    split = (~together & continues).sum() / continues.sum()
    if masked.strategy == "token":
        assert split > 0.2
    else:
        assert split == 0


@pytest.mark.parametrize("masked", ["whole_word"], indirect=True)
def test_packing_changes_no_mask(store, masked):
    unpacked = mask(store, "whole_word", packing=False)
    theirs = examples(unpacked)
    both = examples(masked).keys() & theirs.keys()
    assert len(both) > 1000
    ours = examples(masked)
    for number in both:
        for name in ("input_ids", "token_type_ids", "position_ids"):
            assert np.array_equal(
                masked.after[name][ours[number]], unpacked.after[name][theirs[number]]
            )
        assert np.array_equal(masked.predicted[ours[number]], unpacked.predicted[theirs[number]])

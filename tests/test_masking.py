import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLS_ID, MASK_ID, SEP_ID, make_batch, make_masking

from bert_jax.fields import build
from bert_jax.objective.masking import Masking, mask_tokens

STRATEGIES = tuple(Masking.kinds())
pytestmark = pytest.mark.core

KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnames="masking")
def mask(batch, masking, key):
    return mask_tokens(batch, masking, key)


@functools.cache
def masked(strategy: str, rows: int = 200, seed: int = 0, **fields: float):
    """A masking of `rows` rows with three packed examples each, and the batch before it."""
    batch = make_batch([[40, 17, 6]] * rows, max_seq_length=64, seed=seed)
    masking = make_masking(strategy=strategy, slots=16, **fields)
    return batch, jax.device_get(mask(batch, masking, KEY))


def chosen(after) -> np.ndarray:
    """[rows, length] bool: the predicted positions."""
    result = np.zeros(after["input_ids"].shape, bool)
    rows, slots = np.nonzero(after["masked_lm_weights"])
    result[rows, after["masked_lm_positions"][rows, slots]] = True
    return result


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels_are_the_tokens_before_masking(strategy):
    before, after = masked(strategy)
    rows, slots = np.nonzero(after["masked_lm_weights"])
    positions = after["masked_lm_positions"][rows, slots]
    assert np.array_equal(after["masked_lm_ids"][rows, slots], before["input_ids"][rows, positions])
    assert chosen(after).sum() == len(rows), "a position is listed twice"
    untouched = ~chosen(after)
    assert np.array_equal(after["input_ids"][untouched], before["input_ids"][untouched])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_special_tokens_and_padding_are_never_chosen(strategy):
    before, after = masked(strategy)
    assert not np.isin(before["input_ids"][chosen(after)], [CLS_ID, SEP_ID, MASK_ID, 0, 1]).any()
    assert not chosen(after)[before["segment_ids"] == 0].any()


def test_token_masking_predicts_exactly_the_share_of_each_example():
    before, after = masked("token")
    for example, length in enumerate([40, 17, 6], start=1):
        counts = (chosen(after) & (before["segment_ids"] == example)).sum(axis=1)
        assert (counts == max(1, round(0.15 * length))).all()


@pytest.mark.parametrize("strategy", ["whole_word", "span"])
def test_units_fill_the_budget_without_exceeding_it(strategy):
    before, after = masked(strategy)
    counts = (chosen(after) & (before["segment_ids"] == 1)).sum(axis=1)
    assert counts.max() <= 6
    assert counts.mean() > 5.9


def word_ids(before) -> np.ndarray:
    """[rows, length]: which word each position belongs to; -1 for specials and padding."""
    ids = before["input_ids"]
    is_word = ids >= 5
    follows_word = np.pad(is_word, ((0, 0), (1, 0)))[:, :-1]
    start = is_word & ~((ids % 3 == 0) & follows_word)
    return np.where(is_word, np.cumsum(start, axis=1), -1)


@pytest.mark.parametrize("strategy", ["whole_word", "span"])
def test_words_are_masked_whole(strategy):
    before, after = masked(strategy)
    words = word_ids(before)
    hidden = chosen(after)
    together = (words[:, 1:] == words[:, :-1]) & (words[:, 1:] >= 0)
    assert together.sum() > 1000
    assert (hidden[:, 1:] == hidden[:, :-1])[together].all()


def test_token_masking_splits_words():
    before, after = masked("token")
    words, hidden = word_ids(before), chosen(after)
    together = (words[:, 1:] == words[:, :-1]) & (words[:, 1:] >= 0)
    assert (hidden[:, 1:] != hidden[:, :-1])[together].any()


def test_spans_run_over_several_words():
    runs = {}
    for strategy in STRATEGIES:
        _, after = masked(strategy)
        hidden = np.pad(chosen(after), ((0, 0), (1, 1))).astype(int)
        runs[strategy] = chosen(after).sum() / (np.diff(hidden, axis=1) == 1).sum()
    assert runs["token"] < runs["whole_word"] < runs["span"]
    assert runs["span"] > 2.0


@pytest.mark.parametrize("longest", [1, 3, 5])
def test_uniform_spans(longest):
    """Of the same bits a loop over words makes the same spans; all lengths are as frequent."""
    batch = make_batch([[70, 9]] * 600, max_seq_length=80)
    masking = make_masking(strategy="span", lengths="uniform", max_words=longest).masking
    is_candidate = batch["input_ids"] >= 5
    continues = is_candidate & (batch["input_ids"] % 3 == 0)
    order, bits = np.random.default_rng(0).integers(0, 2**32, (2, *continues.shape), np.uint32)
    starts, taken = map(np.asarray, masking.units(continues, is_candidate, order, bits))
    first_spans: list[int] = []
    for row in range(len(starts)):
        span = np.full(80, -1)
        place, begin, lengths = longest, -1, []
        for i in np.flatnonzero(starts[row]):
            after_break = not is_candidate[row, i - 1]
            ended = place == longest or bits[row, i] < 2**32 / (longest - place + 1)
            if after_break or ended:
                place, begin = 0, i
                lengths.append(0)
            place, span[i] = place + 1, begin
            lengths[-1] += 1
        words = span >= 0
        assert np.array_equal(taken[row, words], order[row, span[words]])
        first_spans += lengths[:2]
    shares = np.bincount(first_spans)[1:] / len(first_spans)
    assert len(shares) == longest
    assert shares == pytest.approx(1 / longest, abs=0.05)


@pytest.mark.parametrize("shares", [(0.8, 0.1), (1.0, 0.0), (0.5, 0.5)], ids=str)
def test_shares_of_mask_random_and_kept(shares):
    fields = dict(zip(("mask_share", "random_share"), shares))
    before, after = masked("token", rows=2000, **fields)
    seen, label = after["input_ids"][chosen(after)], before["input_ids"][chosen(after)]
    random = (seen != MASK_ID) & (seen != label)
    assert np.mean(seen == MASK_ID) == pytest.approx(shares[0], abs=0.01)
    assert np.mean(random) == pytest.approx(shares[1], abs=0.01)
    assert np.mean(seen == label) == pytest.approx(1 - sum(shares), abs=0.01)
    if not shares[1]:
        return
    assert seen[random].min() >= 5, "a special token as random replacement"
    assert len(np.unique(seen[random])) > 250


def test_every_position_is_equally_likely():
    before, after = masked("token", rows=2000)
    words = (before["segment_ids"] == 1) & (before["input_ids"] >= 5)
    share = chosen(after)[:, words[0]].mean(axis=0)
    assert share.min() > 0.12
    assert share.max() < 0.20


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_masks_depend_on_the_example_and_not_on_its_row(strategy):
    """The same examples packed, unpacked and in another order get the same masks."""
    masking = make_masking(strategy=strategy, slots=16)
    packed = make_batch([[30, 12], [20, 20]])
    alone = make_batch([[30], [12], [20], [20]])
    packed_ids = mask(packed, masking, KEY)["input_ids"]
    alone_ids = mask(alone, masking, KEY)["input_ids"]
    joined = [(0, 0, 30), (0, 30, 12), (1, 0, 20), (1, 20, 20)]
    for row, (packed_row, start, length) in enumerate(joined):
        expected = np.asarray(packed_ids[packed_row, start : start + length])
        assert np.array_equal(alone_ids[row, :length], expected)


def test_epoch_and_seed_change_the_masks():
    masking = make_masking()
    batch = make_batch([[40]] * 4)
    later = batch | {"example_ids": batch["example_ids"] + np.array([1, 0], np.int32)}
    first = mask(batch, masking, KEY)["masked_lm_positions"]
    assert not np.array_equal(first, mask(later, masking, KEY)["masked_lm_positions"])
    other_key = jax.random.key(1)
    assert not np.array_equal(first, mask(batch, masking, other_key)["masked_lm_positions"])
    assert np.array_equal(first, mask(batch, masking, KEY)["masked_lm_positions"])


def test_number_of_predictions_follows_the_formula_of_bert():
    table = make_masking(max_predictions_per_seq=76).masking.num_to_predict(512)
    for length in (1, 2, 9, 10, 11, 30, 128, 512):
        assert table[length] == min(76, max(1, round(0.15 * length)))
    assert table[0] == 0


def test_the_share_moves_in_a_straight_line_and_is_its_own_in_evaluation():
    """From 30 % to 15 % over steps 100 to 200; the budget of an example of 40 tokens follows."""
    fields = {"final_masked_lm_prob": 0.15, "heldout_masked_lm_prob": 0.2}
    masking = make_masking(slots=24, masked_lm_prob=0.3, **fields)
    masking = dataclasses.replace(masking, first_step=100, steps=100)
    batch = make_batch([[40, 17, 6]] * 8, max_seq_length=64)
    budgets = []
    for step in (None, 100, 150, 200):
        after = mask_tokens(batch, masking, KEY, None if step is None else jnp.int32(step))
        own = chosen(jax.device_get(after)) & (batch["segment_ids"] == 1)
        assert len(set(own.sum(axis=1))) == 1
        budgets.append(int(own.sum(axis=1)[0]))
    assert budgets == [12, 12, 9, 6]
    heldout = masking.masking.for_heldout()
    assert heldout.num_to_predict(40)[40] == 8
    assert heldout.num_to_predict(40, jnp.float32(1.0))[40] == 8
    slots = masking.masking.predictions_per_row(64, 3)
    assert slots >= sum(masking.masking.num_to_predict(40)[[40, 17, 6]])
    rising = build(Masking, {"name": "token", "masked_lm_prob": 0.1, "final_masked_lm_prob": 0.3})
    assert rising.predictions_per_row(64, None) == 20
    assert rising.predictions_per_row(64, 3) >= 0.3 * 64

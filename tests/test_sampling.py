import hashlib

import numpy as np
import pytest
from sotu_words import sotu_words

from bert_jax.data import sampling
from bert_jax.data.sampling import PAIRS, Plan, Sampling
from bert_jax.errors import UserError

pytestmark = pytest.mark.core


def plan_epoch(sentences, documents, *, seed=0, epoch=0, **options):
    """A plan without packing, unless it is asked for."""
    sampled = Sampling(**{"packing": False, **options})
    return sampling.plan_epoch(sentences, documents, sampled, seed=seed, epoch=epoch)


def offsets(lengths):
    return np.append(0, np.cumsum(np.asarray(lengths, np.int64)))


def plan_sotu(max_seq_length=128, seed=0, epoch=0, **options):
    split, _ = sotu_words()
    return plan_epoch(
        split.sentences,
        split.documents,
        seed=seed,
        epoch=epoch,
        max_seq_length=max_seq_length,
        **options,
    )


def document_of(sentences, documents, token):
    return np.searchsorted(sentences[documents], token, side="right") - 1


def stops(plan):
    return plan.a_start + plan.a_length, plan.b_start + plan.b_length


def digest(plan):
    return hashlib.sha256(b"".join(vars(plan)[k].tobytes() for k in vars(plan))).hexdigest()[:16]


def row_lengths(plan, num_special):
    lengths = (plan.a_length + plan.b_length + num_special)[plan.row_examples]
    return np.add.reduceat(lengths, plan.row_offsets[:-1])


def check(plan: Plan, sentences, documents, max_seq_length, pairs, max_examples_per_row):
    """What holds for every plan of any corpus."""
    num_special = 2 if pairs == "none" else 3
    a_stop, b_stop = stops(plan)
    assert plan.a_length.min() >= 1
    assert (plan.a_length + plan.b_length).max() <= max_seq_length - num_special
    a_document = document_of(sentences, documents, plan.a_start)
    assert np.array_equal(a_document, document_of(sentences, documents, a_stop - 1))
    if pairs == "none":
        assert not plan.b_length.any()
        assert (plan.next_sentence_label == -1).all()
    else:
        assert plan.b_length.min() >= 1
        assert set(plan.next_sentence_label) <= {0, 1}
        b_document = document_of(sentences, documents, plan.b_start)
        assert np.array_equal(b_document, document_of(sentences, documents, b_stop - 1))
        in_order, label_1 = a_stop <= plan.b_start, plan.next_sentence_label == 1
        assert np.array_equal(
            a_document == b_document, ~label_1 if pairs == "nsp" else label_1 | ~label_1
        )
        assert in_order[~label_1].all()
        if pairs == "sop":
            assert (b_stop <= plan.a_start)[label_1].all()
    assert np.array_equal(np.sort(plan.row_examples), np.arange(plan.num_examples))
    assert plan.row_offsets[0] == 0
    assert plan.row_offsets[-1] == plan.num_examples
    assert np.diff(plan.row_offsets).min() >= 1
    assert np.diff(plan.row_offsets).max() <= max_examples_per_row
    assert row_lengths(plan, num_special).max() <= max_seq_length


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("max_seq_length", [128, 512])
@pytest.mark.parametrize("pairs", PAIRS)
def test_plan_of_real_text(pairs, max_seq_length, packing):
    split, _ = sotu_words()
    plan = plan_sotu(max_seq_length, pairs=pairs, packing=packing, max_examples_per_row=8)
    check(plan, split.sentences, split.documents, max_seq_length, pairs, 8 if packing else 1)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("pairs", PAIRS)
def test_plan_of_odd_corpora(pairs, seed):
    """Empty sentences and documents, single sentences, sentences longer than several rows."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([0, 1, 2, 7, 30, 300], size=rng.integers(20, 200))
    sentences = offsets(lengths)
    documents = offsets(rng.multinomial(len(lengths), rng.dirichlet([0.5] * 12)))
    max_seq_length = int(rng.integers(5, 70))
    options = {"seed": seed, "epoch": 0, "max_seq_length": max_seq_length, "pairs": pairs}
    packed = plan_epoch(sentences, documents, packing=True, max_examples_per_row=4, **options)
    kept = np.unique(sentences[documents], return_index=True)[1]
    check(packed, sentences, documents[kept], max_seq_length, pairs, 4)


def test_nsp_labels_follow_google():
    """Half of what can be split is random, and all of what cannot."""
    split, _ = sotu_words()
    plan = plan_sotu()
    whole = plan.a_length + plan.b_length < 128 - 3  # nothing was cut off
    follows = whole & (plan.next_sentence_label == 0)
    a_stop, b_stop = stops(plan)
    assert np.array_equal(a_stop[follows], plan.b_start[follows])
    for edge in (plan.a_start, a_stop, plan.b_start, b_stop):
        assert np.isin(edge[whole], split.sentences).all()
    assert 0.5 < plan.next_sentence_label.mean() < 0.6

    # One-token sentences can be split anywhere: a fair coin, but for the last one of a document.
    fair = plan_epoch(
        np.arange(200_001), offsets([1000] * 200), seed=0, epoch=0, max_seq_length=32, pairs="nsp"
    )
    assert abs(fair.next_sentence_label.mean() - 0.5) < 4 * 0.5 / fair.num_examples**0.5
    share = fair.a_length / (fair.a_length + fair.b_length)
    assert abs(share.mean() - 0.5) < 0.01


def test_nsp_uses_every_sentence_once_and_all_other_documents_alike():
    plan = plan_epoch(
        np.arange(40_001), offsets([100] * 400), seed=1, epoch=0, max_seq_length=32, pairs="nsp"
    )
    used = np.zeros(40_000, int)
    follows = plan.next_sentence_label == 0
    for start, length in [
        *zip(plan.a_start, plan.a_length),
        *zip(plan.b_start[follows], plan.b_length[follows]),
    ]:
        used[start : start + length] += 1
    assert (used == 1).all()
    document, sentence = np.divmod(plan.b_start[~follows], 100)
    drawn = np.bincount(document, minlength=400)
    assert drawn.var() / drawn.mean() == pytest.approx(1, abs=0.3)  # Poisson
    assert sentence.mean() == pytest.approx(49.5, abs=4 * 28.9 / len(sentence) ** 0.5)


def test_nsp_coverage_of_real_text():
    split, _ = sotu_words()
    plan = plan_sotu(512)
    used = np.zeros(len(split.tokens), int)
    follows = plan.next_sentence_label == 0
    for start, length in [
        *zip(plan.a_start, plan.a_length),
        *zip(plan.b_start[follows], plan.b_length[follows]),
    ]:
        used[start : start + length] += 1
    assert used.max() == 1
    assert used.mean() > 0.95


@pytest.mark.parametrize("short_seq_prob", [0, 0.1])
def test_singles_use_every_token_once(short_seq_prob):
    split, _ = sotu_words()
    plan = plan_sotu(64, pairs="none", short_seq_prob=short_seq_prob)
    a_stop, _ = stops(plan)
    assert plan.a_start[0] == 0
    assert np.array_equal(a_stop[:-1], plan.a_start[1:])
    assert a_stop[-1] == len(split.tokens)
    # Only sentences that are longer than a row are cut.
    cut = ~np.isin(a_stop, split.sentences)
    sentence = np.searchsorted(split.sentences, a_stop[cut]) - 1
    assert (np.diff(split.sentences)[sentence] > 62).all()


def test_sop_swaps_half():
    plan = plan_sotu(pairs="sop")
    assert plan.next_sentence_label.mean() == pytest.approx(0.5, abs=0.02)
    a_stop, b_stop = stops(plan)
    whole = plan.a_length + plan.b_length < 128 - 3
    swapped = plan.next_sentence_label == 1
    assert np.array_equal(b_stop[whole & swapped], plan.a_start[whole & swapped])
    assert np.array_equal(a_stop[whole & ~swapped], plan.b_start[whole & ~swapped])


def test_short_sequences():
    plan = plan_epoch(
        np.arange(2_000_001), np.array([0, 10**6, 2 * 10**6]), seed=0, epoch=0, max_seq_length=102,
        pairs="none", short_seq_prob=0.1,
    )  # fmt: skip
    short = plan.a_length[plan.a_length < 100]
    assert len(short) / plan.num_examples == pytest.approx(0.1 * 98 / 99, rel=0.1)
    assert short.min() == 2
    assert short.mean() == pytest.approx(50.5, rel=0.05)


def test_truncation_cuts_the_longer_segment():
    for a in range(1, 30):
        for b in range(1, 30):
            kept_a, kept_b = a, b
            while kept_a + kept_b > 13:
                if kept_a > kept_b:
                    kept_a -= 1
                else:
                    kept_b -= 1
            plan = plan_epoch(
                offsets([a, b]), np.arange(3), seed=0, epoch=0, max_seq_length=16, pairs="nsp"
            )
            assert (plan.a_length[0], plan.b_length[0]) == (kept_a, kept_b)


def test_truncation_cuts_front_and_back_alike():
    plan = plan_epoch(
        offsets([500] * 2000), np.arange(2001), seed=0, epoch=0, max_seq_length=103, pairs="nsp"
    )
    for start in (plan.a_start, plan.b_start):  # Binomial(450, 1/2)
        front = start % 500
        assert front.mean() == pytest.approx(225, abs=4 * 10.6 / 2000**0.5)
        assert front.std() == pytest.approx(10.6, rel=0.1)


@pytest.mark.parametrize("pairs", PAIRS)
def test_packing_keeps_the_examples_and_saves_rows(pairs):
    single = plan_sotu(512, pairs=pairs)
    packed = plan_sotu(512, pairs=pairs, packing=True, max_examples_per_row=16)
    for name in ("a_start", "a_length", "b_start", "b_length", "next_sentence_label"):
        assert np.array_equal(getattr(single, name), getattr(packed, name))
    tokens = row_lengths(packed, 2 if pairs == "none" else 3).sum()
    assert packed.num_rows < 1.05 * tokens / 512 < single.num_rows


def test_rows_come_in_random_order():
    """Neither the order of the text nor that in which packing filled the rows shows."""
    for packing in (False, True):
        plan = plan_sotu(512, packing=packing, short_seq_prob=0.5, max_examples_per_row=8)
        place = np.arange(plan.num_rows)
        first = plan.row_examples[plan.row_offsets[:-1]]
        for value in (first, row_lengths(plan, 3), np.diff(plan.row_offsets)):
            if np.ptp(value) > 0:
                assert abs(np.corrcoef(place, value)[0, 1]) < 4 / plan.num_rows**0.5


def test_seed_and_epoch_change_the_plan():
    plans = {digest(plan_sotu(seed=s, epoch=e)) for s, e in [(0, 0), (0, 1), (1, 0), (-1, 0)]}
    assert len(plans) == 4
    assert digest(plan_sotu(seed=0, epoch=1)) in plans


@pytest.mark.parametrize(
    ("pairs", "packing", "expected"),
    [
        ("nsp", False, "1440f95ac326141a"),
        ("nsp", True, "70d0f9a118566101"),
        ("sop", True, "ce74fbc0249cdfb9"),
        ("none", True, "74391dea86b8b8b0"),
    ],
)
def test_plan_is_pinned(pairs, packing, expected):
    """A changed digest means that runs with an old seed cannot be repeated or resumed."""
    documents = offsets(np.arange(1000) * 104_729 % 41)
    plan = plan_epoch(
        offsets(np.arange(documents[-1]) * 7919 % 67),
        documents,
        seed=42,
        epoch=3,
        max_seq_length=128,
        pairs=pairs,
        packing=packing,
        max_examples_per_row=4,
    )
    assert digest(plan) == expected


@pytest.mark.parametrize(
    ("sentences", "documents", "options", "message"),
    [
        ([0], [0], {}, "no sentences"),
        ([0, 0, 0], [0, 2], {}, "no sentences"),
        ([0, 5, 9], [0, 2], {"pairs": "nsp"}, "only one"),
        ([0, 5, 9], [0, 2, 2], {"pairs": "nsp"}, "only one"),
        ([0, 5, 9], [0, 1, 2], {"pairs": "sop"}, "at least two sentences"),
        ([0, 5, 9], [0, 1, 2], {"pairs": "nps"}, "pairs must be one of nsp, sop, none"),
        ([0, 5, 9], [0, 1, 2], {"max_seq_length": 4}, "max_seq_length must be at least 5"),
    ],
)
def test_errors(sentences, documents, options, message):
    options = {"seed": 0, "epoch": 0, "max_seq_length": 16, **options}
    with pytest.raises(UserError, match=message):
        plan_epoch(np.array(sentences), np.array(documents), **options)

import math
from collections import Counter

import jax
import numpy as np
import pytest
from configured import configured

from bert_jax.data.stores import open_store
from bert_jax.objective.pretraining import PreTraining
from bert_jax.report.baselines import pretraining_baselines

pytestmark = pytest.mark.core


def test_baselines_of_the_held_out_documents(sotu_store):
    """The same numbers, counted token by token over what an evaluation sees."""
    store = open_store(sotu_store)
    config = configured(**{"data.store": sotu_store})
    objective = PreTraining(None, config.bound_masking(store.tokenizer), seed=0)
    prepare = jax.jit(objective.prepare)
    rows = np.arange(config.data.batch_size)
    heldout = store.heldout_batches(config.data, num_batches=0, host_rows=rows)
    batches = [jax.device_get(prepare(batch)) for batch in heldout]
    baselines = pretraining_baselines(batches, store.train.token_counts)

    masked, labels = [], []
    for batch in batches:
        slots = zip(batch["masked_lm_ids"].flat, batch["masked_lm_weights"].flat)
        masked += [token for token, weight in slots if weight == 1]
        labels += [label for label in batch["next_sentence_label"].flat if label in (0, 1)]
    assert len(masked) > 10_000
    assert len(labels) > 1_000

    counts = Counter(store.train.tokens.tolist())
    total = counts.total() + len(store.tokenizer.vocab)
    nats = [-math.log((counts[token] + 1) / total) for token in masked]
    frequent = counts.most_common(1)[0][0]
    random = sum(labels) / len(labels)
    assert baselines == pytest.approx(
        {
            "mlm_loss": sum(nats) / len(nats),
            "mlm_accuracy": masked.count(frequent) / len(masked),
            "nsp_loss": -random * math.log(random) - (1 - random) * math.log(1 - random),
            "nsp_accuracy": max(random, 1 - random),
        },
        rel=1e-9,
    )
    assert store.tokenizer.vocab[frequent] == "the"
    assert baselines["mlm_loss"] < math.log(len(store.tokenizer.vocab))
    assert 0.5 < random < 0.6


def test_without_pairs_there_is_no_baseline_of_pairs():
    batch = {
        "masked_lm_ids": np.array([[1, 2, 0]]),
        "masked_lm_weights": np.array([[1.0, 1.0, 0.0]]),
        "next_sentence_label": np.array([[-1]]),
    }
    baselines = pretraining_baselines([batch], np.array([0, 2, 0]))  # smoothed: 1, 3, 1 of 5
    assert baselines == pytest.approx(
        {"mlm_loss": (math.log(5 / 3) + math.log(5)) / 2, "mlm_accuracy": 0.5}
    )

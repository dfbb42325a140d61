"""Batches that grow: their rows, the steps and runs made of them."""

import re
from fractions import Fraction

import jax
import numpy as np
import pytest
from etils import epath
from test_batches import Batches, tiny_split
from test_training import recipe

from bert_jax.api.plan import abstract_batch, planned_step
from bert_jax.api.pretrain import pretrain
from bert_jax.data.batch_sizes import BatchSizes
from bert_jax.data.sampling import Sampling
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.parallel import rules
from bert_jax.report.metrics_file import read_metrics


def growing(**fields):
    return build(Sampling, fields, "data")


@pytest.mark.parametrize(
    ("start", "full", "steps", "rows"),
    [
        (8, 32, 12, 4),
        (8, 32, 100, 8),
        (1, 64, 10, 1),
        (3, 100, 7, 30),
        (16, 33, 1, 5),
        (5, 6, 9, 1),
    ],
)
def test_sizes_follow_a_line_and_rows_follow_each_other(start, full, steps, rows):
    fields = {"start_batch_size": start, "growth_steps": steps, "growth_rows": rows}
    sizes = BatchSizes(growing(batch_size=full, **fields), first_row=5)
    possible = [*range(start, full, rows), full]
    row = 5
    for step in range(steps + 20):
        line = start + Fraction(full - start) * step / steps
        expected = min(possible, key=lambda size: (abs(size - line), -size))
        assert sizes.rows(step) == (expected if step < steps else full)
        assert sizes.first_row(step) == row
        row += sizes.rows(step)
    assert {*sizes.sizes} <= {*possible}


@pytest.mark.parametrize(("start", "steps"), [(0, 0), (3, 0), (7, 9), (8, 9), (0, 9)])
def test_without_growth_all_batches_have_one_size(start, steps):
    sizes = BatchSizes(growing(batch_size=7, start_batch_size=start, growth_steps=steps))
    assert (sizes.sizes, sizes.rows(10**9), sizes.first_row(10**9)) == ([7], 7, 7 * 10**9)


def test_growing_batches_are_cut_from_the_same_stream():
    """Also where an epoch ends within a batch."""
    fields = {"start_batch_size": 4, "growth_steps": 6, "growth_rows": 4}
    options = {"batch_size": 16, "max_seq_length": 16}
    grown = Batches(tiny_split(), seed=0, **options, **fields)
    single = Batches(tiny_split(), seed=0, **options | {"batch_size": 1})
    found = [grown.batch(step) for step in range(9)]
    assert [len(batch["input_ids"]) for batch in found] == [4, 8, 8, 12, 12, 16, 16, 16, 16]
    for name in found[0]:
        rows = np.concatenate([batch[name] for batch in found])
        assert len(rows) > 2 * grown.rows_per_epoch
        expected = np.concatenate([single.batch(row)[name] for row in range(len(rows))])
        np.testing.assert_array_equal(rows, expected)
    shifted = Batches(tiny_split(), seed=0, first_row=4, **options, **fields)
    np.testing.assert_array_equal(shifted.batch(0)["input_ids"], grown.batch(1)["input_ids"][:4])


GROWTH = {
    "data.start_batch_size": 16,
    "data.growth_steps": 6,
    "data.growth_rows": 16,
    "numerics.hidden_dropout": 0.0,
    "numerics.attention_dropout": 0.0,
}


def grown(store, **changes):
    """Eight steps of 16, 16, 32, 32, 32, 48, 48 and 48 rows."""
    fields = {"steps": 8, "eval_every": 0, "checkpoint_every": 3, "data.batch_size": 48}
    return recipe(store, **fields | GROWTH | changes)


def test_what_is_told(sotu_store, tmp_path, monkeypatch, capsys):
    """The sizes at the start; the time left by rows, not by steps."""
    from bert_jax.train import metrics

    put_batch, sizes = rules.put_batch, []
    monkeypatch.setattr(
        rules, "put_batch", lambda b, m: sizes.append(len(b["input_ids"])) or put_batch(b, m)
    )
    monkeypatch.setattr(metrics, "duration", lambda seconds: f"{seconds:.6f}")
    config = grown(sotu_store, steps=6, log_every=3, target_mlm_accuracy=1e-9)
    assert pretrain(config, epath.Path(tmp_path / "run"))
    assert sizes[:6] == [16, 16, 32, 32, 32, 48]
    printed = capsys.readouterr().out
    assert "run: 6 steps of 16 to 48 rows of 64 tokens" in printed
    assert "batches grow in 6 steps; the step is compiled for each of their 3 sizes" in printed
    assert "masked LM accuracy" in printed
    assert "reached in 176 rows" in printed
    line = next(x for x in read_metrics(tmp_path / "run") if x["split"] == "train")
    left = float(re.search(r"step 3/6 .* ETA ([\d.]+)", printed)[1])
    assert left == pytest.approx(3 / line["steps_per_second"] * 112 / 64, rel=1e-3)


def test_what_cannot_grow_is_refused(sotu_store, tmp_path):
    with pytest.raises(UserError, match=r"growth_rows, a batch=21 is not a multiple of"):
        grown(sotu_store, **{"data.growth_rows": 5})
    config = grown(sotu_store, **{"data.growth_rows": 8})
    with pytest.raises(UserError, match=r"growth_rows, a batch=40 in 2 microbatches gives 20 rows"):
        pretrain(config, epath.Path(tmp_path / "run"))


def test_plan_is_for_the_largest(sotu_store):
    config = grown(sotu_store)
    mesh = config.mesh.mesh()
    batch = abstract_batch(config, mesh)
    assert batch["input_ids"].shape == (48, 64)
    program = planned_step(config, mesh)
    _, metrics = jax.eval_shape(program.step, program.abstract_state, batch, None)
    assert metrics["tokens"].shape == ()

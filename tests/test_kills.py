"""A run with everything that a state can hold, killed again and again."""

import functools
import random
from types import SimpleNamespace

import jax
import numpy as np
from etils import epath
from test_branches import everything
from test_guard import poisoned
from test_training import deterministic

from bert_jax.api import pretrain as pretraining
from bert_jax.api.pretrain import pretrain
from bert_jax.data.stores import open_store
from bert_jax.interop.teachers import Teachers
from bert_jax.parallel import rules
from bert_jax.pretraining.parts import Part
from bert_jax.pretraining.stages import trained_parts

KILLS = 10


class Killed(BaseException):
    """What no part of the program expects."""


def whole(store, **changes):
    """Averages, a guard, skipped steps, a large one, and three batches of 16 rows before 32."""
    growth = {"data.start_batch_size": 16, "data.growth_steps": 6, "data.growth_rows": 16}
    fields = {"log_every": 3, "checkpoint_every": 2, "keep_checkpoints": 2}
    return poisoned(store, **growth | fields | {"data.batch_size": 32} | changes)


def test_a_branch_that_is_killed_at_random_is_the_same_run(sotu_store, tmp_path, monkeypatch):
    run = epath.Path(tmp_path / "run")
    assert pretrain(whole(sotu_store, steps=2), run)
    config = whole(sotu_store, branch_from=f"{run}@2", steps=7)
    # What each start would trace anew is the same.
    build = functools.cache(lambda first_row: Part.build(config.stages()[0], *given, first_row))
    store = open_store(sotu_store)
    given = (store, trained_parts(config), Teachers(config, store.tokenizer))
    monkeypatch.setattr(pretraining, "Part", SimpleNamespace(build=lambda *x: build(x[-1])))
    assert pretrain(config, epath.Path(tmp_path / "whole"))

    put_batch, chance, killed = rules.put_batch, random.Random(20), 0
    left = 0

    def put_or_die(batch, mesh):
        nonlocal left
        left -= 1
        if left < 0 and killed < KILLS:
            raise Killed
        return put_batch(batch, mesh)

    monkeypatch.setattr(rules, "put_batch", put_or_die)
    branch = epath.Path(tmp_path / "branch")
    while True:
        left = chance.choice((0, 1, 1, 2, 3))
        try:
            assert pretrain(config, branch)
            break
        except Killed:
            killed += 1
    assert killed == KILLS
    assert deterministic(branch) == deterministic(tmp_path / "whole")
    states = [everything(workdir, config, 9) for workdir in (tmp_path / "whole", branch)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert int(states[0].guard.skips) == 0

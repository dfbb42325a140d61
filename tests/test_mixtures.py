"""Mixtures of stores: shares of tokens, passes, and runs over them."""

import contextlib
import dataclasses
import itertools
import json
import math
import random
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from test_shards import same_batch
from test_training import assert_same_run, deterministic, recipe

from bert_jax.api import pretrain as pretraining
from bert_jax.api.evaluate import evaluate
from bert_jax.api.pretrain import pretrain
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.mixing import BLOCK, Mixing
from bert_jax.data.mixture import MixedRows
from bert_jax.data.sampling import Sampling
from bert_jax.data.store import open_token_store
from bert_jax.data.store_writer import append_to_store, write_store
from bert_jax.data.stores import open_data
from bert_jax.data.wordpiece import train_wordpiece
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.parallel import rules
from bert_jax.pretraining.data import configured_stores
from bert_jax.pretraining.parts import Part
from bert_jax.report.metrics_file import read_metrics


@pytest.fixture(scope="module")
def stores(sotu_store, tmp_path_factory):
    """Three of other sizes and kinds of documents, the second in shards; paths by name."""
    tokenizer, folder = open_token_store(sotu_store).tokenizer, tmp_path_factory.mktemp("mixed")
    texts = list(read_documents(find_sources(["corpus:sotu"])))
    kinds = {
        "long": [text[:20_000] for text in texts[:40]],
        "notes": [text[i : i + 300] for text in texts[40:60] for i in range(0, 6000, 300)],
        "few": [text[:4000] for text in texts[60:75]],
    }
    for name, documents in kinds.items():
        write_store(
            folder / name, documents, tokenizer,
            heldout_bound=0.2, provenance={}, shard_tokens=20_000,
        )  # fmt: skip
    return {name: str(folder / name) for name in kinds}


def sampling(stores, weights=(0.5, 0.3, 0.2), **fields):
    mixture = [{"store": path, "weight": w} for path, w in zip(stores.values(), weights)]
    return build(Sampling, {"mixture": mixture, "max_seq_length": 64} | fields, "config.data")


def rows_of(mixed, **changes):
    return MixedRows(open_data(mixed), mixed, seed=changes.pop("seed", 0), **changes)


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.5), (0.7, 0.29, 0.01), (0.999999, 0.000001)])
def test_rows_are_shared_exactly_and_evenly(shares):
    mixing = Mixing(shares, seed=3)
    sources, before = mixing.of(np.arange(BLOCK - 3000, 2 * BLOCK + 3000))
    block = sources[3000 : 3000 + BLOCK]
    counts = np.bincount(block, minlength=len(shares))
    np.testing.assert_allclose(counts, np.array(shares) * BLOCK, atol=1)
    for number, share in enumerate(shares):
        of_source = before[sources == number]
        np.testing.assert_array_equal(of_source, of_source[0] + np.arange(len(of_source)))
        for length in (16, 256, 3000):  # any batch has its share
            ends = np.append(0, np.cumsum(sources == number))
            found = ends[length:] - ends[:-length]
            assert abs(found - share * length).max() < 4
    for row in (0, 5, BLOCK - 1, BLOCK, BLOCK + 77):
        np.testing.assert_array_equal(
            mixing.rows_before(row),
            np.bincount(mixing.of(np.arange(row))[0], minlength=len(shares)),
        )


INF = math.inf


@pytest.mark.parametrize("limits", [(INF, 1000, INF), (INF, 2 * BLOCK, 1), (70, BLOCK // 2, 0)])
def test_a_source_that_is_used_up_leaves_its_share(limits):
    """To the others, in proportion; a source without rows is as none."""
    shares = np.array([0.5, 0.3, 0.2])
    mixing, whole = Mixing(shares, seed=3, limits=limits), Mixing(shares, seed=3)
    assert mixing.num_rows == sum(limits)
    stop = int(min(mixing.num_rows, 9 * BLOCK))
    sources, before = mixing.of(np.arange(stop))
    for number in range(3):
        np.testing.assert_array_equal(
            before[sources == number], np.arange((sources == number).sum())
        )
    counts = np.bincount(sources, minlength=3)
    assert all(counts <= limits)
    used_up = [
        np.flatnonzero(sources == i)[-1] + 1 if limits[i] else 0
        for i in range(3)
        if limits[i] < INF
    ]
    bounds = sorted({0, *used_up, stop})
    for first, last in itertools.pairwise(bounds):  # all that are left, by their shares
        found = np.bincount(sources[first:last], minlength=3)
        left = [i for i in range(3) if mixing.rows_before(int(first))[i] < limits[i]]
        expected = shares[left] / shares[left].sum() * (last - first)
        np.testing.assert_allclose(found[left], expected, atol=4 + (last - first) / BLOCK)
        assert found.sum() == found[left].sum()
    if limits[2]:
        same, _ = whole.of(np.arange(bounds[1]))
        np.testing.assert_array_equal(sources[: bounds[1]], same)
    some = np.random.default_rng(0).permutation(stop)[:3000]
    for found, expected in zip(mixing.of(some), (sources[some], before[some])):
        np.testing.assert_array_equal(found, expected)
    for row in (0, stop, *bounds, *some[:5].tolist()):
        np.testing.assert_array_equal(
            mixing.rows_before(int(row)), np.bincount(sources[:row], minlength=3)
        )


def test_a_limit_on_passes(stores):
    """Batches up to it are those without; no document is read again after it, on any host."""
    free = sampling(stores, batch_size=32)
    mixed = dataclasses.replace(free, max_passes=1.5)

    def stream(data, rows=np.arange):
        return open_data(data).training_batches(data, seed=1, host_rows=rows)

    whole, unlimited = stream(mixed), stream(free)
    used_up = {
        name: next(s for s in range(999) if unlimited.passes(s)[name] > 1.5) - 1 for name in stores
    }
    first, second, last = sorted(used_up, key=used_up.get)
    for step in range(used_up[first]):
        assert same_batch(whole.batch(step), unlimited.batch(step))
    begin, end = (whole.passes(used_up[first] + more) for more in (1, 9))
    assert 1.49 < begin[first] == end[first] <= 1.5
    rows = {part.name: part.rows_per_epoch for part in whole.parts}
    read = {name: (end[name] - begin[name]) * rows[name] for name in rows}
    shares = {part.name: part.share for part in whole.parts}
    assert read[second] / read[last] == pytest.approx(shares[second] / shares[last], abs=0.1)
    steps = sum(math.floor(1.5 * count) for count in rows.values()) // 32
    keys = [whole.batch(step)["example_ids"].reshape(-1, 2) for step in range(steps)]
    number = [*stores].index(first)
    assert not any(
        (key[key.any(axis=1)][:, 0] % 3 == number).any() for key in keys[used_up[first] + 2 :]
    )
    assert all(1.4 < times <= 1.5 for times in whole.passes(steps).values())
    for step in (steps - 1, used_up[first], 3):
        parts = [stream(mixed, lambda size, i=i: np.arange(size)[i::2]).batch(step) for i in (0, 1)]
        for name, values in whole.batch(step).items():
            for i in (0, 1):
                np.testing.assert_array_equal(values[i::2], parts[i][name])
    for beyond in (whole.passes, whole.batch):
        with pytest.raises(
            UserError, match=r"config\.data\.max_passes=1\.5: every source is passed "
        ):
            beyond(steps + 1)
    after = open_data(mixed).after(dict.fromkeys(stores, 1.5))
    with pytest.raises(UserError, match=r"max_passes=1\.5: every source is passed"):
        MixedRows(after, mixed, seed=0)


@pytest.mark.parametrize("packing", [False, True])
def test_weights_are_shares_of_the_tokens(stores, packing):
    """Though rows of the sources hold other numbers of tokens, if each example has its own row."""
    mixed = sampling(stores, packing=packing)
    rows, found = rows_of(mixed), Counter()
    for _, plan, key, _, of_plan in rows.pieces(np.arange(3000)):
        examples = plan.examples(of_plan)
        found[key % 3] += int((plan.a_length + plan.b_length)[examples].sum())
    shares = [found[number] / found.total() for number in range(3)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    assert [part.share for part in rows.parts] == pytest.approx([0.5, 0.3, 0.2])


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0])
def test_temperature_makes_shares_of_sizes(stores, temperature):
    mixed = sampling(stores, (1.0, 1.0, 2.0), temperature=temperature)
    sizes = [open_token_store(path).token_counts.sum() for path in stores.values()]
    expected = np.array([1, 1, 2]) * np.array(sizes, float) ** temperature
    found = [part.share for part in rows_of(mixed).parts]
    assert found == pytest.approx(expected / expected.sum())


def test_a_batch_depends_on_its_step_only(stores):
    """On any number of hosts, in any order, with growing batches."""
    mixed = sampling(stores, batch_size=32, start_batch_size=8, growth_steps=20, growth_rows=8)

    def stream(rows=np.arange):
        return open_data(mixed).training_batches(mixed, seed=1, host_rows=rows)

    whole = stream()
    found = [whole.batch(step) for step in range(120)]
    for count in (2, 4):
        hosts = [
            stream(
                lambda size, host=host, count=count: np.array_split(np.arange(size), count)[host]
            )
            for host in range(count)
        ]
        for step in (119, 0, 7, 60, 19):
            parts = [host.batch(step) for host in hosts]
            joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
            assert same_batch(found[step], joined)
    keys = np.concatenate([batch["example_ids"].reshape(-1, 2) for batch in found])
    assert {*np.unique(keys[:, 0] % 3)} == {0, 1, 2}
    passed = whole.passes(120)
    assert passed["few"] > 2 * passed["long"] > 0


def test_a_mixture_of_one_is_that_store(stores):
    """Bit for bit."""
    mixture = build(Sampling, {"mixture": [{"store": stores["notes"]}], "max_seq_length": 64}, "")
    alone = build(Sampling, {"store": stores["notes"], "max_seq_length": 64}, "")
    left, right = (
        open_data(each).training_batches(each, seed=5, host_rows=np.arange)
        for each in (mixture, alone)
    )
    for step in (0, 3, 40):
        assert same_batch(left.batch(step), right.batch(step))
    assert left.rows_per_epoch == right.rows_per_epoch
    assert left.passes(10) == {"notes": 10 * 256 / right.rows_per_epoch}
    assert right.passes(10) == {}


def test_sources_go_on_where_they_were_passed_to(stores):
    """No row is left out or repeated, whatever the weights are next."""
    first, second = sampling(stores), sampling(stores, (0.1, 0.1, 0.8))
    begin = rows_of(first)
    passed = begin.passes(500)
    after = MixedRows(open_data(second).after(passed), second, seed=0)
    seen = Counter()
    for rows, count in ((begin, 500), (after, 700)):
        for _, _, key, _, of_plan in rows.pieces(np.arange(count)):
            seen.update((key, row) for row in of_plan.tolist())
    assert seen.total() == 1200
    once = Counter(seen.values())
    assert once[1] > 0.99 * len(seen)  # later passes of a shard may differ by a few rows
    assert after.passes(0) == pytest.approx(passed, abs=1e-9)
    assert all(after.passes(700)[name] > times for name, times in passed.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixture": [{"weight": 1}]}, r"config\.data\.mixture\[0\]\.store is empty"),
        ({"mixture": [{"store": "a"}, {"store": "b/a"}]}, r"mixture\[1\]\.name='a': another sour"),
        ({"mixture": [{"store": "a", "weight": 0}]}, r"mixture\[0\]\.weight must be positive, not"),
        (
            {"mixture": [{"store": "a", "wait": 1}]},
            r"mixture\[0\]\.wait: no such field",
        ),
        ({"mixture": [{"store": "a", "name": "b/c"}]}, r"mixture\[0\]\.name='b/c': a name"),
        ({"mixture": [{"store": 3}]}, r"mixture\[0\]\.store must be str, not 3"),
        ({"mixture": ["a"]}, r"config\.data\.mixture must be tuple"),
        (
            {"mixture": [{"store": "a"}], "store": "b"},
            r"store='b' does not go with conf",
        ),
        ({"temperature": 0.5}, r"config\.data\.temperature: is for a config\.data\.mixture"),
        ({"mixture": [{"store": "a"}], "temperature": 1.5}, r"temperature must be in \[0, 1\]"),
    ],
)
def test_what_is_no_mixture_is_refused(fields, message):
    with pytest.raises(UserError, match=message) as error:
        build(Sampling, fields, "config.data")
    assert "\n" not in str(error.value)


def test_from_a_recipe_and_from_the_command_line(tmp_path):
    """The whole mixture, or a field of one of its sources; also of a phase."""
    given = '({"store": "s/web", "weight": 0.7}, {"store": "s/books"})'
    (tmp_path / "mixed.py").write_text(
        "from bert import get_config as bert\n"
        "def get_config():\n"
        "    config = bert('tiny')\n"
        f"    config.data.mixture = {given}\n"
        "    return config\n"
    )

    def load(*overrides, recipe=str(tmp_path / "mixed.py")):
        flags = [f"--config.{override}" for override in overrides]
        return load_config(PretrainConfig, [f"--config={recipe}", *flags])

    expected = ({"store": "s/web", "weight": 0.7}, {"store": "s/books"})
    assert load().data.mixture == expected
    assert load(f"data.mixture={given}", recipe="bert:tiny").data.mixture == expected
    changed = load("data.mixture[0].weight=0.2", "data.mixture[1].name=b", "data.temperature=0.3")
    assert [(s.name, s.weight) for s in changed.data.sources] == [("web", 0.2), ("b", 1.0)]
    assert changed.data.temperature == 0.3
    assert changed.data.mixture_summary == "weights web 0.2, b 1, times tokens ** 0.3"
    assert load().data.mixture_summary == "web 41.2%, books 58.8%"
    whole = load(f"data.mixture={given}", "data.mixture[1].weight=3", recipe="bert:tiny")
    assert [source.weight for source in whole.data.sources] == [0.7, 3.0]
    saved = build(PretrainConfig, json.loads(json.dumps(changed.to_dict())))
    assert saved.data.sources == changed.data.sources
    phase = load(f"phases[1].data.mixture={given}", "data.mixture=()", recipe="bert_base")
    assert phase.stages()[1].config.data.mixture == expected
    for override, message in (
        ("data.mixture[2].weight=1", r"config\.data\.mixture\[2\]: config\.data\.mixture has 2 it"),
        ("data.mixture[0].wait=1", r"config\.data\.mixture\[0\]\.wait: no such field"),
        ("data.mixture[0]=1", r"config\.data\.mixture\[0\] is a group"),
        ("data.mixture=web", r"config\.data\.mixture must be groups such as"),
        ("data.mixture[0].weight=much", r"data\.mixture\[0\]\.weight must be float"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load(override)
        assert "\n" not in str(error.value)


# Changing weights, a growing batch and two phases, of which the second has longer rows.
PHASES = (
    {"steps": 5, "data": {"start_batch_size": 8, "growth_steps": 3, "growth_rows": 8}},
    {
        "steps": 4,
        "data": {"batch_size": 8, "max_seq_length": 64, "temperature": 0.5},
        "optimizer": {"learning_rate": 5e-4},
    },
)


def mixed_run(stores, **changes):
    """Nine steps over the three stores, of which `few` is used up in the seventh."""
    names = dict(zip(stores, (0.6, 0.3, 0.1)))
    first = [{"store": path, "weight": names[name]} for name, path in stores.items()]
    second = [{"store": path, "weight": 1.0} for path in stores.values()]
    phases = [{**phase, "data": dict(phase["data"])} for phase in PHASES]
    phases[1]["data"]["mixture"] = second
    fields = {
        "data.store": "",
        "data.mixture": first,
        "data.max_passes": 0.045,
        "data.max_seq_length": 32,
        "data.max_examples_per_row": 2,
        "masking.max_predictions_per_seq": 5,
        "optimizer.gradient_accumulation": 1,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "log_every": 2,
        "eval_every": 4,
        "checkpoint_every": 2,
        "keep_checkpoints": 4,
        "steps": 9,
        "phases": phases,
    }
    return recipe("", **fields | changes)


@pytest.fixture(scope="module")
def run(stores, tmp_path_factory):
    """Its workdir; what it prints is beside it."""
    workdir = tmp_path_factory.mktemp("mixed_run") / "run"
    with (workdir.parent / "printed.txt").open("w") as file, contextlib.redirect_stdout(file):
        assert pretrain(mixed_run(stores), epath.Path(workdir))
    return workdir


def test_passes_are_in_the_metrics_and_scores_are_by_source(run, stores):
    lines = read_metrics(run)
    config = mixed_run(stores)
    passed, expected = {}, {}
    for stage, store in zip(config.stages(), configured_stores(config)):
        store, data = store.after(passed), stage.config.data
        stream = store.training_batches(data, seed=0, host_rows=np.arange)
        for step in range(1, stage.config.steps + 1):
            expected[stage.first_step + step] = stream.passes(step)
        passed |= stream.passes(stage.config.steps)
    trained = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in trained] == [2, 4, 5, 6, 8, 9]
    for line in trained:
        found = {name: line[f"data/passes/{name}"] for name in stores}
        assert found == pytest.approx(expected[line["step"]])
    few = {step: passed["few"] for step, passed in expected.items()}
    assert expected[9]["long"] < few[9] <= 0.045
    used_up = next(step for step in few if few[step] == few[9])
    assert used_up < 9
    printed = (run.parent / "printed.txt").read_text()
    assert printed.count("used up") == 1
    assert f" 0.03 to 0.04 times: used up at step {used_up}, the others have its share\n" in printed
    for line in lines:
        if line["split"] in ("heldout", "baseline"):
            assert {f"{name}/mlm_loss" for name in stores} <= line.keys()
            losses = [line[f"{name}/mlm_loss"] for name in stores]
            assert min(losses) < line["mlm_loss"] < max(losses)
    data = json.loads((run / "data.json").read_text())
    fingerprints = {name: open_token_store(path).fingerprint for name, path in stores.items()}
    assert data == {f"store_fingerprint.{name}": x for name, x in fingerprints.items()}


def test_evaluate_scores_each_source(run, stores):
    found = evaluate(run)
    last = [line for line in read_metrics(run) if line["split"] == "heldout"][-1]
    for name in (f"{source}mlm_loss" for source in ("", *(f"{each}/" for each in stores))):
        assert found.scores[name] == pytest.approx(last[name], rel=1e-5)
        assert name in found.baselines
    one = evaluate(run, store=stores["few"])
    assert one.scores["mlm_loss"] == pytest.approx(last["few/mlm_loss"], rel=1e-5)


def test_what_a_start_tells(run, stores, tmp_path, capsys):
    """And a run that is over; stores may move, but not change."""
    shutil.copytree(run, tmp_path / "run")
    for name, path in stores.items():
        shutil.copytree(path, tmp_path / "moved" / name)
    moved = {name: str(tmp_path / "moved" / name) for name in stores}
    assert pretrain(mixed_run(moved), epath.Path(tmp_path / "run"))
    assert "changed since the last start: data.mixture[0].store" in capsys.readouterr().out
    append_to_store(moved["few"], ["A new document. It is short."], provenance={})
    with pytest.raises(UserError, match=r"other data: store_fingerprint\.few: '\w+' -> '\w+'"):
        pretrain(mixed_run(moved), epath.Path(tmp_path / "run"))
    config = mixed_run(stores, **{"data.max_passes": 0.001})
    with pytest.raises(
        UserError,
        match=r"config\.data\.max_passes=0\.001: every .* after \d+ of \d+ rows; train few",
    ):
        pretrain(config, epath.Path(tmp_path / "other"))
    with pytest.raises(UserError, match=r"data\.max_passes: 0\.045 -> 0\.0"):
        pretrain(mixed_run(stores, **{"data.max_passes": 0.0}), epath.Path(run))
    first = [dict(each) for each in config.data.mixture]
    first[0]["weight"] = 0.5
    with pytest.raises(UserError, match=r"data\.mixture\[0\]\.weight: 0\.6 -> 0\.5"):
        pretrain(mixed_run(stores, **{"data.mixture": first}), epath.Path(run))


def test_another_vocabulary_is_refused(stores, tmp_path):
    texts = ["One two three.\nFour five."] * 3 + ["Six."]
    other = train_wordpiece(texts, vocab_size=60)
    write_store(tmp_path / "other", texts, other, heldout_bound=0.0, provenance={})
    mixed = sampling({**stores, "other": str(tmp_path / "other")}, (1.0, 1.0, 1.0, 1.0))
    with pytest.raises(UserError, match=r"config\.data\.mixture: other has another vocabulary"):
        open_data(mixed)


def test_a_branch_goes_on_with_the_rows_of_its_run(run, stores, tmp_path):
    """Of the second phase, bit for bit; with other weights from where the sources were passed."""
    config = mixed_run(stores)
    second = config.stages()[1]
    fields = {"phases": (), "steps": 3, "branch_from": f"{run}@6"}
    for name in ("batch_size", "max_seq_length", "temperature", "mixture"):
        fields[f"data.{name}"] = getattr(second.config.data, name)
    fields["data.start_batch_size"], fields["optimizer.learning_rate"] = 0, 5e-4
    workdir = epath.Path(tmp_path / "branch")
    assert pretrain(mixed_run(stores, **fields), workdir)
    mine = {x["step"]: x for x in deterministic(workdir) if x["split"] == "train"}
    whole = {x["step"]: x for x in deterministic(run) if x["split"] == "train"}
    assert mine[9]["loss"] == whole[9]["loss"]
    names = [f"data/passes/{name}" for name in stores]
    assert [mine[9][name] for name in names] == pytest.approx([whole[9][name] for name in names])
    phase = {"steps": 1, "data": {"temperature": 0.0}}
    other = mixed_run(stores, **fields | {"steps": 1, "phases": (phase,)})
    assert pretrain(other, epath.Path(tmp_path / "other"))
    line = [x for x in read_metrics(tmp_path / "other") if x["split"] == "train"][-1]
    before = {name: whole[6][name] for name in names}
    assert all(line[name] > times for name, times in before.items())


KILLS = 5


class Killed(BaseException):
    """What no part of the program expects."""


def test_a_run_that_is_killed_at_random_is_the_same(run, stores, tmp_path, monkeypatch):
    """Three stores, weights that change, a growing batch, two phases."""
    build_part, first = Part.build, {}

    def built(stage, *arguments):
        """All but the data of a start; what is compiled once is not compiled again."""
        part = build_part(stage, *arguments)
        kept = first.setdefault(stage.name, part)
        return part._replace(program=kept.program, heldout=kept.heldout)

    put_batch, chance, killed, left = rules.put_batch, random.Random(3), 0, 0

    def put_or_die(batch, mesh):
        nonlocal left
        left -= 1
        if left < 0 and killed < KILLS:
            raise Killed
        return put_batch(batch, mesh)

    monkeypatch.setattr(pretraining, "Part", SimpleNamespace(build=built))
    monkeypatch.setattr(rules, "put_batch", put_or_die)
    workdir = epath.Path(tmp_path / "run")
    while True:
        left = chance.choice((0, 1, 1, 2, 3))
        try:
            assert pretrain(mixed_run(stores), workdir)
            break
        except Killed:
            killed += 1
    assert killed == KILLS
    assert_same_run(run, tmp_path / "run", 9)

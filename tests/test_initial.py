"""Continued pretraining: a run that starts from the weights of another."""

import dataclasses
import json
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
from configured import CONFIGS
from etils import epath
from safetensors.numpy import load_file
from test_training import recipe

from bert_jax.__main__ import main
from bert_jax.api.pretrain import pretrain
from bert_jax.errors import UserError
from bert_jax.interop.initial import follow_weights
from bert_jax.interop.workdir import read_workdir, write_workdir
from bert_jax.report.metrics_file import read_metrics


@pytest.fixture(scope="module")
def trained(sotu_store, tmp_path_factory):
    """A workdir with the weights of a short run."""
    workdir = epath.Path(tmp_path_factory.mktemp("trained"))
    assert pretrain(recipe(sotu_store), workdir)
    return workdir


def tensors(workdir, path):
    """The parameters without padding."""
    assert main(["convert", str(workdir), str(path), "--to=huggingface"]) == 0
    return load_file(path / "model.safetensors")


def heldout_losses(workdir):
    return [line["mlm_loss"] for line in read_metrics(workdir) if line["split"] == "heldout"]


def continued(store, source, **changes):
    return recipe(store, init_from=str(source), **changes)


@pytest.mark.parametrize(("source", "zero1"), [("bert_jax", True), ("huggingface", False)])
def test_weights_are_taken_over(trained, sotu_store, tmp_path, source, zero1):
    """With a learning rate of almost nothing the parameters stay what they were."""
    path = tmp_path / source
    assert main(["convert", str(trained), str(path), f"--to={source}"]) == 0
    workdir = epath.Path(tmp_path / "run")
    changes = {"steps": 1, "optimizer.learning_rate": 1e-30, "mesh.zero1": zero1}
    assert pretrain(continued(sotu_store, path, **changes), workdir)
    before, after = (
        tensors(run, tmp_path / name) for run, name in ((trained, "a"), (workdir, "b"))
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert heldout_losses(workdir)[-1] == pytest.approx(heldout_losses(trained)[-1], abs=1e-6)


def test_a_resumed_run_does_not_start_anew(trained, sotu_store, tmp_path):
    workdir = epath.Path(tmp_path)
    changes = {"steps": 4, "checkpoint_every": 2, "optimizer.schedule": "constant"}
    config = continued(sotu_store, trained, **changes)
    assert pretrain(config, workdir)
    assert pretrain(dataclasses.replace(config, steps=8), workdir)
    once = tmp_path / "once"
    assert pretrain(dataclasses.replace(config, steps=8), epath.Path(once))
    assert heldout_losses(workdir)[-1] == heldout_losses(once)[-1]


def damage(workdir, step):
    """Flips a bit of every array of a checkpoint."""
    for data in (workdir / "checkpoints" / str(step) / "state").rglob("d/*"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)


def test_the_first_weights_may_move_but_not_change(trained, sotu_store, tmp_path, capsys):
    """They are known by their values, also in another format; a run that goes on needs none."""
    first, second = (epath.Path(tmp_path / name) for name in ("first", "second"))
    for path, step in ((first, 10), (second, 14)):
        write_workdir(path, read_workdir(trained, step))
    workdir = epath.Path(tmp_path / "run")
    changes = {"steps": 1, "optimizer.schedule": "constant"}
    assert pretrain(continued(sotu_store, first, **changes), workdir)
    known = json.loads((workdir / "data.json").read_text())
    message = r"init_from: '.*first' -> '.*second'; initial_weights: '[0-9a-f]{64}' -> '"
    with pytest.raises(UserError, match=message):
        pretrain(continued(sotu_store, second, **changes), workdir)
    with pytest.raises(UserError, match=r"init_from: '.*first' -> ''; initial_weights: "):
        pretrain(recipe(sotu_store, **changes), workdir)
    second.rmtree()
    first.rename(second)
    changes["steps"] = 2
    assert pretrain(continued(sotu_store, second, **changes), workdir)
    assert "changed since the last start: init_from: " in capsys.readouterr().out
    assert json.loads((workdir / "data.json").read_text()) == known
    second.rmtree()
    assert pretrain(continued(sotu_store, second, **changes), workdir)
    command = ["pretrain", f"--config={CONFIGS / 'bert.py'}", f"--workdir={workdir}"]
    assert main([*command, f"--config.init_from={second}", "--config.seed=-1"]) == 2
    assert "config.seed must" in capsys.readouterr().err  # and not init_from


def test_a_run_of_an_older_version_is_compared_by_path(trained, sotu_store, tmp_path):
    workdir = epath.Path(tmp_path / "run")
    assert pretrain(continued(sotu_store, trained, steps=1), workdir)
    known = json.loads((workdir / "data.json").read_text())
    del known["initial_weights"]
    (workdir / "data.json").write_text(json.dumps(known))
    moved = tmp_path / "moved"
    moved.symlink_to(trained)
    with pytest.raises(UserError, match=r"init_from: '.*' -> '.*moved'\. Choose"):
        pretrain(continued(sotu_store, moved, steps=1), workdir)
    assert pretrain(continued(sotu_store, trained, steps=1), workdir)
    assert json.loads((workdir / "data.json").read_text()) == known


def test_the_advice_about_damaged_weights_can_be_copied(
    trained, sotu_store, tmp_path, monkeypatch, capsys
):
    source = tmp_path / "a run"
    shutil.copytree(trained, source)
    damage(source, 14)
    monkeypatch.chdir(tmp_path)
    changes = {"steps": 1, "optimizer.learning_rate": 1e-30}
    with pytest.raises(UserError, match=r"damaged: .* whole are the checkpoints of") as caught:
        pretrain(continued(sotu_store, source, **changes), epath.Path("run"))
    command, init_from = re.search("`bert-jax (.*)` .*init_from=(.*)$", str(caught.value)).groups()
    assert main(shlex.split(command)) == 0
    (target,) = shlex.split(init_from)
    assert pretrain(continued(sotu_store, target, **changes), epath.Path("run"))
    found, expected = read_workdir(epath.Path("run")), read_workdir(trained, 10)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)

    command = ["predict", "fill-mask", f"--model={source}", "The [MASK]."]
    assert main(command) == 2
    (step,) = re.findall(r"read another with (--step=\d+)$", capsys.readouterr().err.strip())
    assert main([*command, step]) == 0


def without_heads(trained, path):
    model = read_workdir(trained)
    write_workdir(path, model._replace(params={"bert": model.params["bert"]}))


def test_missing_heads_start_at_random_only_if_asked(trained, sotu_store, tmp_path, capsys):
    encoder = epath.Path(tmp_path / "encoder")
    without_heads(trained, encoder)
    with pytest.raises(UserError, match=r"no masked_lm, next_sentence.*init_missing_heads=True"):
        pretrain(continued(sotu_store, encoder), epath.Path(tmp_path / "run"))
    config = continued(sotu_store, encoder, init_missing_heads=True, steps=1)
    assert pretrain(config, epath.Path(tmp_path / "run"))
    assert f"masked_lm: not in {encoder}, starts at random" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.num_layers": 3}, r"another model: set --config.model.num_layers=2$"),
        ({"model.hidden_act": "gelu"}, r"set --config.model.hidden_act=gelu_tanh$"),
        ({"init_from": "nowhere"}, "nowhere"),
    ],
)
def test_another_model_is_refused(trained, sotu_store, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        pretrain(recipe(sotu_store, **({"init_from": str(trained)} | changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_is_refused(trained, sotu_store, tmp_path):
    source = read_workdir(trained)
    words = source.tokenizer.vocab
    swapped = dataclasses.replace(source.tokenizer, vocab=(*words[:-2], words[-1], words[-2]))
    write_workdir(epath.Path(tmp_path / "other"), source._replace(tokenizer=swapped))
    with pytest.raises(UserError, match=r"vocabulary.*--vocab="):
        pretrain(continued(sotu_store, tmp_path / "other"), epath.Path(tmp_path / "run"))


def test_without_pairs_no_head_for_them_is_there(trained, sotu_store, tmp_path, capsys):
    """Nor is one asked of the weights; the other parameters start as they would beside it."""
    encoder = epath.Path(tmp_path / "masked_lm")
    model = read_workdir(trained)
    bert = {name: values for name, values in model.params["bert"].items() if name != "pooler"}
    masked_lm = {"bert": bert, "masked_lm": model.params["masked_lm"]}
    write_workdir(encoder, model._replace(params=masked_lm))
    run, changes = tmp_path / "run", {"steps": 1, "data.pairs": "none"}
    assert pretrain(continued(sotu_store, encoder, **changes), epath.Path(run))
    assert set(read_workdir(epath.Path(run)).params) == {"bert", "masked_lm"}
    assert main(["convert", str(run), str(tmp_path / "theirs"), "--to=huggingface"]) == 0
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("We are at peace.\tLet it last.\n")
    assert main(["predict", "next-sentence", f"--model={run}", str(pairs)]) == 2
    assert "the model has no" in capsys.readouterr().err

    rates = {"steps": 1, "optimizer.learning_rate": 1e-30}
    starts = {}
    for kind in ("nsp", "none"):
        path = epath.Path(tmp_path / kind)
        assert pretrain(recipe(sotu_store, **rates, **{"data.pairs": kind}), path)
        starts[kind] = read_workdir(path).params
    for name in ("masked_lm", "bert"):
        without, beside = starts["none"][name], starts["nsp"][name]
        same = {part: beside[part] for part in without}
        # What starts at 0 has moved by the learning rate.
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-20), without, same)


def test_the_architecture_follows_the_weights_where_it_is_left_open(trained, tmp_path):
    ours = recipe("nowhere", init_from=str(trained), **{"model.num_layers": 3})
    ours = dataclasses.replace(ours, model=dataclasses.replace(ours.model, hidden_size=64))
    theirs = read_workdir(trained).architecture
    config, (line,) = follow_weights(ours, [])
    assert config.model == theirs
    assert line == f"config.model follows {trained}: num_layers=2, hidden_size=32"
    config, _ = follow_weights(ours, ["--config.model.num_layers=3", "--config.steps=9"])
    assert config.model == dataclasses.replace(theirs, num_layers=3)
    assert follow_weights(config, ["--config.model.num_layers=3"]) == (config, [])
    assert follow_weights(dataclasses.replace(ours, init_from=""), []) == (
        dataclasses.replace(ours, init_from=""),
        [],
    )

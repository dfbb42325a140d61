"""Sweeps: which runs they start, and what they make of the results."""

import json
import sys

import pytest
from matplotlib import image

from bert_jax.__main__ import main
from bert_jax.api import sweep as sweeps

pytestmark = pytest.mark.core

# Stands for `bert-jax`: the loss is the rate times 1000, plus the seed.
PROGRAM = """
import json, pathlib, sys
verb, *arguments = sys.argv[1:]
given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
workdir = pathlib.Path(given["workdir"])
workdir.mkdir(exist_ok=True)
with (workdir / "calls").open("a") as file:
    file.write(json.dumps([verb, given]) + "\\n")
rate, seed = float(given["config.optimizer.learning_rate"]), int(given["config.seed"])
if rate == 0.005 or (workdir / "stop").exists():
    sys.exit(75 if rate < 0.005 else 1)
if verb == "pretrain":
    line = {"step": 4000, "split": "heldout", "loss": 9.0, "mlm_loss": rate * 1000 + seed}
    (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
else:
    score = {"dev": {"metrics": {"accuracy": 1 - rate * 1e4, "loss": 1.0}}}
    (workdir / "results.json").write_text(json.dumps(score))
"""


@pytest.fixture(autouse=True)
def program(tmp_path, monkeypatch):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    monkeypatch.setattr(sweeps, "PROGRAM", (sys.executable, str(script)))


def test_every_combination_with_every_seed(tmp_path, sotu_store, capsys):
    workdir = tmp_path / "sweep"
    command = ["sweep", "--config=quickstart", f"--config.data.store={sotu_store}"]
    command += [f"--workdir={workdir}", "--config.seed=3", "--seeds=2"]
    command += ["--grid", "optimizer.learning_rate=1e-3,4e-3,5e-3", "--grid", "data.batch_size=8"]
    assert main(command) == 0
    *runs, head, best, second = capsys.readouterr().out.splitlines()
    failed = workdir / "learning_rate=5e-3,batch_size=8" / "seed3"
    assert len(runs) == 6
    assert f"{failed}: exit code 1, see {failed}.log" in runs
    assert head.split() == ["mlm_loss,", "mean", "std", "runs"]
    assert best.split() == ["learning_rate=1e-3", "batch_size=8", "4.5", "0.7071", "2"]
    assert second.split() == ["learning_rate=4e-3", "batch_size=8", "7.5", "0.7071", "2"]
    found = json.loads((workdir / "sweep.json").read_text())
    assert [trial["mlm_loss"] for trial in found] == [4, 5, 7, 8]
    assert found[0]["fields"] == {"optimizer.learning_rate": "1e-3", "data.batch_size": "8"}
    verb, given = json.loads((workdir / "learning_rate=1e-3,batch_size=8/seed4/calls").read_text())
    assert (verb, given["config"], given["config.seed"]) == ("pretrain", "quickstart", "4")
    assert image.imread(workdir / "sweep.png").shape[1] == 880


def test_the_grid_of_the_paper(tmp_path, capsys):
    (tmp_path / "data.tsv").write_text("text\tlabel\nA b.\t1\n")
    data = [f"--config.task.{split}={tmp_path}/data.tsv" for split in ("train", "dev")]
    given = ["--config=finetune:classification", f"--config.init_from={tmp_path}", *data]
    assert main(["sweep", *given, f"--workdir={tmp_path}/sweep", "--grid", "bert"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18 + 1 + 18
    assert lines[19].split()[1] == "learning_rate=2e-5"  # the highest accuracy is the best
    assert (tmp_path / "sweep/batch_size=16,learning_rate=3e-5,epochs=4/seed0").is_dir()


def test_folds_are_compared_as_one(tmp_path, capsys):
    (tmp_path / "data.tsv").write_text("text\tlabel\nA b.\t1\n")
    given = ["--config=finetune:classification", f"--config.init_from={tmp_path}"]
    given += [f"--config.task.train={tmp_path}/data.tsv", f"--workdir={tmp_path}/sweep"]
    given += ["--grid", "optimizer.learning_rate=1e-5,2e-5", "--grid", "fold=1/3,2/3,3/3"]
    assert main(["sweep", *given]) == 0
    *runs, _, best, second = capsys.readouterr().out.splitlines()
    assert len(runs) == 6
    assert best.split() == ["learning_rate=1e-5", "90.0%", "0.0%", "3"]
    assert second.split() == ["learning_rate=2e-5", "80.0%", "0.0%", "3"]
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [trial["fields"]["fold"] for trial in found] == ["1/3", "2/3", "3/3"] * 2


def test_a_stopped_sweep_says_so(tmp_path, sotu_store):
    workdir = tmp_path / "sweep"
    command = ["sweep", "--config=quickstart", f"--config.data.store={sotu_store}"]
    command += [f"--workdir={workdir}", "--grid", "optimizer.learning_rate=1e-3,2e-3", "--gpus=1"]
    (workdir / "learning_rate=1e-3/seed0").mkdir(parents=True)
    (workdir / "learning_rate=1e-3/seed0/stop").touch()
    assert main(command) == 75
    assert not (workdir / "learning_rate=2e-3").exists()
    (workdir / "learning_rate=1e-3/seed0/stop").unlink()
    assert main(command) == 0
    assert len(json.loads((workdir / "sweep.json").read_text())) == 2


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("optimizer.learning_rate=1e-3,x", "config.optimizer.learning_rate"),
        ("optimizer.learning_rat=1", "no such field"),
        ("optimizer.learning_rate=1,", "write FIELD=VALUE,VALUE, or one of: bert"),
        ("google", "write FIELD=VALUE,VALUE, or one of: bert"),
    ],
)
def test_invalid_combinations_are_refused_before_any_run(
    tmp_path, sotu_store, capsys, grid, message
):
    command = ["sweep", "--config=quickstart", f"--config.data.store={sotu_store}"]
    assert main([*command, f"--workdir={tmp_path}/sweep", "--grid", grid]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()

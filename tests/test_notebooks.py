"""The notebooks run from top to bottom, and what is committed has been run."""

import fnmatch
import json
import os
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The parameters of each notebook, small. The steps end a run, not the clock.
SMALL = {
    "pretrain": "VOCAB_SIZE, STEPS, MINUTES = 400, 8, 10_000",
    "finetune": 'VOCAB_SIZE, STEPS, MINUTES = 400, 8, 10_000\nMODEL = ""\n'
    "LEARNING_RATE, EPOCHS, EXAMPLES = 1e-3, 1, 40",
    "data": 'VOCAB_SIZE, SOURCE = 400, "corpus:sotu"',
    "compare": "VOCAB_SIZE, STEPS, MINUTES = 400, 8, 10_000\n"
    'RECIPES = {"bert": ["--config=quickstart"], "modern": ["--config=quickstart:modern"]}',
}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, mime):
    """Everything shown as `mime`, in order."""
    shown = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data[mime] for output in shown if mime in output.get("data", {})]


def printed(notebook):
    shown = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in shown if output.output_type == "stream")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of all notebooks, as a reader has it: a store and a model that is there is taken."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def run(workdir, monkeypatch):
    """A function that runs a notebook with small parameters, and returns it with its outputs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    # One device, as most readers have.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")

    def run(name):
        notebook = read(ROOT / "notebooks" / f"{name}.ipynb")
        (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
        parameters.source = f"WORKDIR = {str(workdir)!r}\n{SMALL[name]}"
        folder = {"metadata": {"path": str(ROOT / "notebooks")}}
        nbclient.NotebookClient(notebook, timeout=3600, resources=folder).execute()
        return notebook

    return run


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS} == {*SMALL}


def test_pretrain(run, workdir):
    notebook = run("pretrain")
    assert "step 8/8" in printed(notebook)
    assert outputs(notebook, "image/png")
    pairs, before, *_, after = outputs(notebook, "text/markdown")
    assert "**[MASK]** (*" in pairs
    assert "B is from another document" in pairs
    assert "%" in before
    assert before != after
    assert (workdir / "run" / "curves.png").exists()


def test_finetune(run, workdir):
    notebook = run("finetune")
    assert "names, train: 40\n" in printed(notebook)
    assert "answers, dev: 8\n" in printed(notebook)
    periods, errors, names, countries, answers, asked = outputs(notebook, "text/markdown")
    for table, task in ((periods, "classification"), (names, "tagging"), (answers, "answering")):
        scores = json.loads((workdir / f"finetune-{task}" / "results.json").read_text())["dev"]
        assert table.count("\n") == 1 + len(scores["metrics"])
    right = json.loads((workdir / "finetune-classification" / "results.json").read_text())
    right = round(8 * right["dev"]["metrics"]["accuracy"])
    assert errors.startswith(f"{8 - right} of 8 are wrong.")
    (marked,) = [page for page in outputs(notebook, "text/html") if "<mark" in page]
    assert marked.count("<p>") <= 8
    examples = (workdir / "examples" / "names.train.conll").read_text()
    assert "France B-COUNTRY" in examples
    assert "Mexico B-COUNTRY" not in examples  # kept for dev
    assert "| not in training |" in countries
    assert asked.count("✓") + asked.count("✗") == 8
    assert len(outputs(notebook, "image/png")) == 2  # confusion, attention
    assert (workdir / "attention.html").exists()


def test_data(run, workdir):
    notebook = run("data")
    sizes, pairs, masks, seeds = outputs(notebook, "text/markdown")
    splits = json.loads((workdir / "store" / "manifest.json").read_text())["splits"]
    train = [f"{splits['train'][name]:,}" for name in ("documents", "sentences", "tokens")]
    assert f"| train | {' | '.join(train)} |" in sizes
    assert pairs.count("\n") == 1 + 5
    assert "B is from another document in 77% of 1,280 pairs" in printed(notebook)
    assert [line.split(" | ")[0] for line in masks.splitlines()[2:]] == [
        *("| token", "| whole_word", "| span")
    ]
    first, *others = [line.split(" | ")[1] for line in seeds.splitlines()[2:]]
    assert first not in others
    assert all("**[MASK]** (*" in text for text in (first, *others))
    assert len(outputs(notebook, "image/png")) == 4  # store, masks, packing, mixtures


def test_compare(run, workdir):
    notebook = run("compare")
    assert "model.norm_position: 'post' -> 'pre'" in printed(notebook)
    *_, scores, masks = outputs(notebook, "text/markdown")
    assert scores.startswith("| held-out | bert | modern | baseline |")
    assert "| steps | 8 | 8 | |" in scores
    assert masks.startswith("| text | bert | modern |")
    assert masks.count("%") == 4 * 2 * 3
    assert len(outputs(notebook, "image/png")) == 3  # curves of each run, and of both
    assert (workdir / "compare.html").exists()


@pytest.mark.parametrize(
    ("devices", "extra"), [((), ""), (["/dev/nvidia0"], "[gpu]"), (["/dev/accel0"], "[tpu]")]
)
def test_first_cell_installs_once(monkeypatch, capsys, tmp_path, devices, extra):
    """What the accelerator at hand needs; nothing if bert_jax is installed."""
    (install,) = {code_cells(read(path))[0].source for path in NOTEBOOKS}
    commands = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    monkeypatch.setattr("glob.glob", lambda pattern: fnmatch.filter(devices, pattern))
    exec(install, {})
    assert commands == []
    said = capsys.readouterr().out
    assert said.startswith("bert_jax 0.1.0, JAX ")
    assert ("does not use the TPU or GPU" in said) == bool(devices)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="not installed: write where it is in REPOSITORY"):
        exec(install, {})
    for place, source in (
        ("https://host/bert_jax@v1", "git+https://host/bert_jax@v1"),
        (str(tmp_path), f"file://{tmp_path}"),
    ):
        exec(install.replace('REPOSITORY = ""', f"REPOSITORY = {place!r}"), {})
        command = commands.pop()
        assert command[1:] == [
            *("-m", "pip", "install", "--quiet"),
            f"bert-jax{extra} @ {source}",
        ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_as_run(path):
    """In order, without an error, with its pictures, and nothing of where it ran."""
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert outputs(notebook, "image/png")
    for place in ("/home/", "/tmp/", str(ROOT)):
        assert place not in printed(notebook)

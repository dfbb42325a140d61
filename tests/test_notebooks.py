"""The notebooks run from top to bottom, and what is committed has been run."""

import fnmatch
import os
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "pretrain.ipynb"
SMALL = "VOCAB_SIZE, STEPS, MINUTES = 400, 8, 10_000"  # the steps end the run, not the clock


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, mime):
    """Everything shown as `mime`, in order."""
    shown = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data[mime] for output in shown if mime in output.get("data", {})]


def printed(notebook):
    shown = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in shown if output.output_type == "stream")


def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as most readers have
    notebook = read()
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = f"WORKDIR = {str(tmp_path)!r}\n{SMALL}"
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=3600, resources=folder).execute()

    assert "step 8/8" in printed(notebook)
    assert outputs(notebook, "image/png")
    pairs, before, *_, after = outputs(notebook, "text/markdown")
    assert "**[MASK]** (*" in pairs
    assert "B is from another document" in pairs
    assert "%" in before
    assert before != after
    assert (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize(
    ("devices", "extra"), [((), ""), (["/dev/nvidia0"], "[gpu]"), (["/dev/accel0"], "[tpu]")]
)
def test_first_cell_installs_once(monkeypatch, devices, extra):
    """What the accelerator at hand needs; nothing if bert_jax is installed."""
    install = code_cells(read())[0].source
    commands = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    monkeypatch.setattr("glob.glob", lambda pattern: fnmatch.filter(devices, pattern))
    exec(install, {})
    assert commands == []

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="not installed: write where it is in REPOSITORY"):
        exec(install, {})
    exec(install.replace('REPOSITORY = ""', 'REPOSITORY = "https://host/bert_jax@v1"'), {})
    (command,) = commands
    assert command[1:] == [
        *("-m", "pip", "install", "--quiet"),
        f"bert-jax{extra} @ git+https://host/bert_jax@v1",
    ]


def test_committed_as_run():
    """In order, without an error, with its pictures, and nothing of where it ran."""
    notebook = read()
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert outputs(notebook, "image/png")
    assert "/home/" not in printed(notebook)
    assert str(ROOT) not in printed(notebook)

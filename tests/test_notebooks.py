"""The notebooks run from top to bottom, and what is committed has been run."""

import os
from pathlib import Path

import pytest

from bert_jax import __version__

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "pretrain.ipynb"
SMALL = "VOCAB_SIZE, STEPS, MINUTES = 400, 8, 1"


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
    nbclient.NotebookClient(notebook, timeout=300, resources=folder).execute()

    assert "step 8/8" in printed(notebook)
    assert outputs(notebook, "image/png")
    pairs, before, *_, after = outputs(notebook, "text/markdown")
    assert "**[MASK]** (*" in pairs
    assert "B is from another document" in pairs
    assert "%" in before
    assert before != after
    assert (tmp_path / "run" / "curves.png").exists()


def test_installs_the_version_at_hand():
    notebook = read()
    assert f'VERSION = "{__version__}"' in code_cells(notebook)[0].source
    assert f"/blob/v{__version__}/notebooks/pretrain.ipynb)" in notebook.cells[0].source


def test_committed_as_run():
    """In order, without an error, with its pictures, and nothing of where it ran."""
    notebook = read()
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert outputs(notebook, "image/png")
    assert "/home/" not in printed(notebook)
    assert str(ROOT) not in printed(notebook)

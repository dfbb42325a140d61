"""Pruning: importance is what a numeric derivative says, and what is pruned adds nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from portables import make_portable

import bert_jax
from bert_jax.__main__ import main
from bert_jax.api.evaluate import features_of
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece
from bert_jax.evaluation.importance import Importance, importance
from bert_jax.inference.fine_tuned import task_of
from bert_jax.interop import formats
from bert_jax.interop.portable import structure_of
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.pruning import kept_layers, scaled
from bert_jax.objective.finetuning import FineTuning
from bert_jax.tasks.batches import ExampleBatches

pytestmark = pytest.mark.core

WORDPIECE = WordPiece((*SPECIAL_TOKENS, *(f"word{n}" for n in range(95))), lowercase=True)
SMALL = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "num_layers": 3}
LINES = "".join(
    f"{label}\tword{7 * i % 90} word{i} word{3 * i}\n"
    for i, label in enumerate(["negative", "neutral", "positive", "neutral", "negative"])
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier and examples of its classes."""
    folder = tmp_path_factory.mktemp("pruning")
    parts = ("pooler", "sequence_classifier")
    write_workdir(epath.Path(folder / "model"), make_portable(WORDPIECE, parts, **SMALL))
    (folder / "data.tsv").write_text("label\ttext\n" + LINES)
    return folder


def test_importance_is_the_derivative(folder):
    model = formats.read(folder / "model")
    task = task_of(model)
    features = features_of(model, task, task.read(str(folder / "data.tsv")))
    options = {"pad_id": 0, "batch_size": 3, "seed": None, "packing": False}
    batches = ExampleBatches(features, task.head, **options)
    objective = FineTuning(structure_of(model).graphdef, task.head)
    rows = [batches.batch(step) for step in range(batches.steps_per_epoch)]
    found = importance(objective, model.params, rows, (3, 2))

    @jax.jit
    def losses(heads, layers, batch):  # of each row
        def loss(row):
            params = scaled(model.params, heads, layers)
            sums = objective.sums(params, {name: x[None] for name, x in row.items()})
            return sums["task_loss"]

        return jax.lax.map(loss, batch)

    def slopes(which, place):
        scales = {"heads": np.ones((3, 2)), "layers": np.ones(3)}
        of_rows = []
        for batch in rows:
            ends = []
            for change in (-1e-2, 1e-2):
                changed = {name: values.copy() for name, values in scales.items()}
                changed[which][place] += change
                ends.append(np.asarray(losses(*changed.values(), batch), np.float64))
            of_rows += list(np.abs(ends[1] - ends[0]) / 2e-2)
        return sum(of_rows) / 5  # rows without an example have no loss

    for place in ((0, 0), (1, 1), (2, 0)):
        np.testing.assert_allclose(found.heads[place], slopes("heads", place), rtol=0.02, atol=1e-5)
    for place in range(3):
        np.testing.assert_allclose(found.layers[place], slopes("layers", place), rtol=0.02)


def test_the_least_important():
    found = Importance(np.array([[3.0, 4.0], [0.2, 0.1]]), np.array([0.5, 0.1, 0.7]))
    assert found.least_heads(0).sum() == 0
    # Normalised by layer: 0.6, 0.8, 0.89, 0.45.
    assert found.least_heads(0.25).tolist() == [[False, False], [False, True]]
    assert found.least_heads(0.5).tolist() == [[True, False], [False, True]]
    assert found.layers_without(0) == [0, 1, 2]
    assert found.layers_without(2) == [2]


def test_a_pruned_head_adds_nothing_and_a_layer_is_gone(folder):
    params = formats.read(folder / "model").params
    heads = jnp.ones((3, 2)).at[1, 0].set(0)
    layers = scaled(params, heads, jnp.ones(3))["bert"]["encoder"]["layers"]
    kernel = np.asarray(layers["attention"]["output"]["kernel"])
    original = params["bert"]["encoder"]["layers"]["attention"]["output"]["kernel"]
    assert not kernel[1, :8].any()
    np.testing.assert_array_equal(kernel[1, 8:], original[1, 8:])
    np.testing.assert_array_equal(kernel[[0, 2]], original[[0, 2]])
    kept = kept_layers(params, [0, 2])["bert"]["encoder"]["layers"]["attention"]["output"]["kernel"]
    np.testing.assert_array_equal(kept, original[[0, 2]])


def test_the_verb(folder, capsys):
    source = f"{folder}/data.tsv"
    command = ["prune", f"--model={folder}/model", f"--data={source}", f"--dev={source}"]
    assert main([*command, f"--output={folder}/out", "--heads=0.5", "--layers=1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder}/out"
    found = json.loads((folder / "out" / "pruning.json").read_text())
    assert found["metric"] == "accuracy"
    shares = {name: [point["share"] for point in found["curves"][name]] for name in found["curves"]}
    assert shares == {"heads": [i / 10 for i in range(10)], "layers": [0, 1 / 3, 2 / 3]}
    whole = bert_jax.evaluate(folder / "model", data=source).scores["accuracy"]
    assert found["curves"]["heads"][0]["score"] == found["curves"]["layers"][0]["score"] == whole
    assert sum(map(sum, found["pruned"]["heads"])) == 3
    assert len(found["pruned"]["layers"]) == 1
    pruned = bert_jax.evaluate(folder / "out" / "model", data=source).scores["accuracy"]
    assert found["pruned"]["score"] == pruned
    assert formats.read(folder / "out" / "model").architecture.num_layers == 2
    assert (folder / "out" / "pruning.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--heads=1"], "--heads=1.0: a share of all heads, from 0 to less than 1"),
        (["--layers=3"], "--layers=3: the model has 3"),
        (["--data=nothing.tsv"], "--data=nothing.tsv: no such file"),
        (["--examples=0"], "--examples=0: must be positive"),
    ],
)
def test_refusals(folder, tmp_path, capsys, flags, message):
    source = f"{folder}/data.tsv"
    command = ["prune", f"--model={folder}/model", f"--data={source}", f"--dev={source}"]
    assert main([*command, f"--output={tmp_path}/out", *flags]) == 2
    assert capsys.readouterr().err.splitlines() == [f"bert-jax prune: error: {message}"]
    assert not (tmp_path / "out").exists()


def test_layers_of_several_kinds_stay(tmp_path, capsys):
    parts = ("pooler", "sequence_classifier")
    changes = SMALL | {"global_every": 2, "local_window": 4}
    write_workdir(epath.Path(tmp_path / "model"), make_portable(WORDPIECE, parts, **changes))
    (tmp_path / "data.tsv").write_text("label\ttext\n" + LINES)
    source = f"{tmp_path}/data.tsv"
    command = ["prune", f"--model={tmp_path}/model", f"--data={source}", f"--dev={source}"]
    assert main([*command, f"--output={tmp_path}/out", "--layers=1"]) == 2
    assert "several kinds (model.global_every)" in capsys.readouterr().err

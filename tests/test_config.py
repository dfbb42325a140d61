"""Config files, overrides, and the recipes of this repository."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import pytest

from bert_jax.config import CHOICES, build_config, differences, load_config, read_config
from bert_jax.errors import UserError
from bert_jax.model.bert import padded_vocab_size
from bert_jax.parallel.mesh import make_mesh
from bert_jax.train.build import build_model
from bert_jax.train.state import num_params

pytestmark = pytest.mark.core

CONFIGS = Path(__file__).parents[1] / "configs"
SIZES = importlib.import_module("bert").SIZES
# Parameters with both heads; the word table is padded to a multiple of 128 rows.
PARAMETERS = {"tiny": 4.4e6, "mini": 11.3e6, "small": 29.1e6, "medium": 41.7e6}
PARAMETERS |= {"base": 110.1e6, "large": 336.2e6}


def load(*overrides: str, recipe: str = "bert.py:tiny"):
    flags = [f"--config.{override}" for override in ("data.store=store", *overrides)]
    return load_config([f"--config={CONFIGS / recipe}", *flags])


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    model = build_model(load(recipe=f"bert.py:{size}").model, make_mesh())
    count = num_params(jax.eval_shape(model.init, jax.random.key(0)))
    padding = padded_vocab_size(30_522) - 30_522  # rows of the table and biases that are ours
    count -= padding * (SIZES[size][1] + 1)
    assert count == pytest.approx(PARAMETERS[size], rel=0.01)


def test_default_argument_is_base():
    assert load(recipe="bert.py") == load(recipe="bert.py:base")


def test_overrides():
    config = load(
        "seed=3",
        "model.hidden_dropout=0",
        "data.packing=false",
        "data.pairs=sop",
        "optimizer.learning_rate=5e-4",
        "mesh.fsdp=2",
        "seed=4",
    )
    assert config.seed == 4
    assert config.model.hidden_dropout == 0.0
    assert type(config.model.hidden_dropout) is float
    assert config.data.packing is False
    assert config.data.examples_per_row == 1
    assert config.data.max_predictions_per_row == config.data.max_predictions_per_seq
    assert config.data.pairs == "sop"
    assert config.optimizer.learning_rate == 5e-4
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (-1, 2, 1)
    changed = {line.partition(":")[0] for line in differences(load().to_dict(), config.to_dict())}
    assert changed == {
        "seed",
        "model.hidden_dropout",
        "data.packing",
        "data.pairs",
        "optimizer.learning_rate",
        "mesh.fsdp",
    }


def test_steps_move_the_warmup_unless_it_is_given():
    assert load().optimizer.warmup_steps == 10_000
    assert load("steps=5000").optimizer.warmup_steps == 50
    assert load("steps=5000", "optimizer.warmup_steps=7").optimizer.warmup_steps == 7
    assert load("optimizer.warmup_steps=7", "steps=5000").optimizer.warmup_steps == 7


@pytest.mark.parametrize(
    ("field", "choice"), [(field, choice) for field in CHOICES for choice in CHOICES[field]]
)
def test_choices(field, choice):
    splash = ["model.attention_dropout=0"] if choice == "splash" else []
    config = load(f"{field}={choice}", "optimizer.bias_correction=true", *splash).to_dict()
    for name in field.split("."):
        config = config[name]
    assert config == choice


def test_packed_rows_have_room_for_every_prediction():
    """Any split of a row into examples needs at most as many slots as there are."""
    data = load().data
    assert data.packing
    for first in range(8, data.max_seq_length - 8):
        lengths = [first, data.max_seq_length - first]
        while len(lengths) < data.max_examples_per_row:
            longest = lengths.pop(lengths.index(max(lengths)))
            lengths += [longest // 2, longest - longest // 2]
        wanted = [max(1, round(data.masked_lm_prob * length)) for length in lengths]
        needed = sum(min(number, data.max_predictions_per_seq) for number in wanted)
        assert needed <= data.max_predictions_per_row


def test_differences():
    old = {"a": 1, "group": {"b": 1.0, "gone": True}, "same": "x"}
    new = {"a": 2, "group": {"b": 1.0, "new": "y"}, "same": "x"}
    assert differences(old, old) == []
    assert differences(old, new) == [
        "a: 1 -> 2",
        "group.gone: True -> None",
        "group.new: None -> 'y'",
    ]
    old, new = {"list": ({"a": 1}, {"a": 2})}, {"list": ({"a": 1}, {"a": 3}, {"a": 4})}
    assert differences(old, new) == ["list[1].a: 2 -> 3", "list[2]: None -> {'a': 4}"]


def test_a_saved_config_reads_back_equal(tmp_path):
    path = tmp_path / "config.json"
    for config in (load("steps=5000", recipe="quickstart.py"), load(recipe="bert_base.py")):
        path.write_text(json.dumps(config.to_dict()))
        assert read_config(path) == config


def test_a_saved_config_is_checked(tmp_path):
    fields = load().to_dict()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields | {"steps": 0}))
    with pytest.raises(UserError, match=r"config\.json: config\.steps must be positive, not 0"):
        read_config(path)
    del fields["model"]["num_heads"]
    with pytest.raises(UserError, match=r"config\.model\.num_heads is missing"):
        build_config(fields)


def test_one_config_file_does_not_leak_into_the_next(tmp_path):
    load()
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"empty\.py: AttributeError"):
        load_config([f"--config={tmp_path / 'empty.py'}"])


def test_a_recipe_imports_its_neighbour(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 256\n")
    (tmp_path / "recipe.py").write_text(
        "import bert, neighbour\n\n"
        "def get_config(size='tiny'):\n"
        "  config = bert.get_config(size)\n"
        "  config.model.hidden_size = neighbour.WIDTH\n"
        "  config.data.store = 'store'\n"
        "  return config\n"
    )
    assert load_config([f"--config={tmp_path / 'recipe.py'}"]).model.hidden_size == 256


def test_phases_become_stages():
    config = load("phases[0].steps=200", "phases[1].max_seq_length=256", recipe="bert_base.py")
    assert config.steps == 100_200
    first, second = config.stages()
    assert (first.first_step, first.last_step) == (0, 200)
    assert (second.first_step, second.last_step) == (200, 100_200)
    assert first.config.optimizer.warmup_steps == 2
    assert second.config.optimizer.warmup_steps == 1_000
    data = second.config.data
    lengths = (data.max_seq_length, data.max_predictions_per_seq, data.max_examples_per_row)
    assert lengths == (256, 40, 8)
    same = {"steps": 200, "data": first.config.data, "optimizer": first.config.optimizer}
    assert dataclasses.replace(second.config, **same) == first.config
    assert [config.stage_of(step).name for step in (0, 200, 201)] == [
        "phases[0]",
        "phases[0]",
        "phases[1]",
    ]


def test_a_config_without_phases_is_its_only_stage():
    config = load()
    (stage,) = config.stages()
    assert (stage.first_step, stage.last_step, stage.config) == (0, config.steps, config)
    without = load("phases=()", "steps=70", "data.batch_size=8", recipe="bert_base.py")
    assert without.stages()[0].config == without
    assert without.optimizer.warmup_steps == 0

"""Config files, overrides, and the recipes of this repository."""

import importlib
import json
from pathlib import Path

import jax
import pytest

from bert_jax.config import CHOICES, build_config, differences, load_config, read_config
from bert_jax.errors import UserError
from bert_jax.parallel.mesh import make_mesh
from bert_jax.train.build import build_model, build_schedule
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


def recipes() -> list[str]:
    """Every recipe with each of its arguments."""
    names = [path.name for path in sorted(CONFIGS.glob("*.py")) if path.name != "bert.py"]
    return [*(f"bert.py:{size}" for size in SIZES), *names]


@pytest.mark.parametrize("recipe", recipes())
def test_recipe_traces(recipe):
    config = load(recipe=recipe)
    model = build_model(config.model, make_mesh())
    params = jax.eval_shape(model.init, jax.random.key(0))
    layers = {leaf.shape[0] for leaf in jax.tree.leaves(params["bert"]["encoder"]["layers"])}
    assert layers == {config.model.num_layers}
    rates = [float(build_schedule(config)(step)) for step in (0, config.steps // 2, config.steps)]
    assert max(rates) <= config.optimizer.learning_rate
    assert config.data.max_predictions_per_row < config.data.max_seq_length


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    model = build_model(load(recipe=f"bert.py:{size}").model, make_mesh())
    count = num_params(jax.eval_shape(model.init, jax.random.key(0)))
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
    config = load(f"{field}={choice}").to_dict()
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


def test_a_saved_config_reads_back_equal(tmp_path):
    config = load("steps=5000", "data.masking=span", recipe="quickstart.py")
    path = tmp_path / "config.json"
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

"""Recipes, overrides, phases, and configurations that older versions have saved."""

import dataclasses
import functools
import importlib
import json
import re
from pathlib import Path

import jax
import pytest

from bert_jax.config.overrides import differences
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config
from bert_jax.config.reference import reference
from bert_jax.config.saved import read_pretrain_config
from bert_jax.errors import UserError
from bert_jax.fields import Choice, build, leaves
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.model import build_model
from bert_jax.train.optimizers import Adafactor, Lamb, Sgd
from bert_jax.train.schedules import Cooldown, Cosine, OneMinusSqrt, Poly
from bert_jax.train.state import num_params

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SIZES = importlib.import_module("bert").SIZES
# Parameters with both heads; the word table is padded to a multiple of 128 rows.
PARAMETERS = {"tiny": 4.4e6, "mini": 11.3e6, "small": 29.1e6, "medium": 41.7e6}
PARAMETERS |= {"base": 110.1e6, "large": 336.2e6}


def load(*overrides: str, recipe: str = "bert.py:tiny"):
    flags = [f"--config.{override}" for override in ("data.store=store", *overrides)]
    return load_config(PretrainConfig, [f"--config={CONFIGS / recipe}", *flags])


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    model = build_model(load(recipe=f"bert.py:{size}").model, Numerics())
    count = num_params(jax.eval_shape(model.init, jax.random.key(0)))
    padding = (
        Architecture().padded_vocab_size - 30_522
    )  # rows of the table and biases that are ours
    count -= padding * (SIZES[size][1] + 1)
    assert count == pytest.approx(PARAMETERS[size], rel=0.01)


def test_default_argument_is_base():
    assert load(recipe="bert.py") == load(recipe="bert.py:base")


def test_overrides():
    config = load(
        "seed=3",
        "numerics.hidden_dropout=0",
        "data.packing=false",
        "data.pairs=sop",
        "optimizer.learning_rate=5e-4",
        "mesh.fsdp=2",
        "seed=4",
    )
    assert config.seed == 4
    assert config.numerics.hidden_dropout == 0.0
    assert type(config.numerics.hidden_dropout) is float
    assert config.data.packing is False
    assert config.data.examples_per_row == 1
    assert config.predictions_per_row == config.masking.max_predictions_per_seq
    assert config.data.pairs == "sop"
    assert config.optimizer.learning_rate == 5e-4
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (-1, 2, 1)
    changed = {line.partition(":")[0] for line in differences(load().to_dict(), config.to_dict())}
    assert changed == {
        "seed",
        "numerics.hidden_dropout",
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


CHOICES = [
    (path, choice)
    for path, declared in leaves(PretrainConfig())
    for choice in declared.metadata["choices"]
]
FAMILIES = ["model.position_embedding", "masking", "objective", "optimizer", "optimizer.schedule"]


@pytest.mark.parametrize(("field", "choice"), CHOICES)
def test_choices(field, choice):
    splash = ["numerics.attention_dropout=0"] if choice == "splash" else []
    config = load(f"{field}={choice}", *splash).to_dict()
    for name in field.split("."):
        config = config[name]
    assert config == choice


@pytest.mark.parametrize("path", FAMILIES)
def test_kinds(path):
    """Each kind can be chosen by its name, and has its own fields."""
    group = PretrainConfig()
    for name in path.split("."):
        group = getattr(group, name)
    assert isinstance(group, Choice)
    for name, kind in group.family().kinds().items():
        needed = [f"{path}.teacher=models/teacher"] if name == "distillation" else []
        for flag in (f"{path}={name}", f"{path}.name={name}"):
            chosen = load(flag, *needed)
            for part in path.split("."):
                chosen = getattr(chosen, part)
            assert type(chosen) is kind


def test_a_kind_may_hold_others():
    """In any order of the overrides."""
    overrides = {
        "optimizer.schedule.after": "one_minus_sqrt",
        "optimizer.schedule.after.floor": "0.1",
        "optimizer.schedule": "cooldown",
        "optimizer.schedule.before.name": "cosine",
        "optimizer": "lamb",
    }
    flags = [f"{field}={value}" for field, value in overrides.items()]
    for order in (flags, flags[::-1]):
        optimizer = load(*order).optimizer
        assert isinstance(optimizer, Lamb)
        assert optimizer.schedule == Cooldown(before=Cosine(), after=OneMinusSqrt(floor=0.1))


def test_another_kind_keeps_the_fields_that_it_has():
    config = load("optimizer=sgd", "optimizer.momentum=0.5", "steps=5000", recipe="quickstart.py")
    assert config.optimizer == Sgd(learning_rate=1.5e-3, warmup_steps=250, momentum=0.5)
    with pytest.raises(UserError, match=r"config\.optimizer\.b1: no such field"):
        load("optimizer.name=sgd", "optimizer.b1=0.5")


def test_a_field_that_the_recipe_does_not_name():
    config = load("masking=span", "masking.max_words=4", "optimizer.b2=0.98")
    assert config.masking.max_words == 4
    assert config.optimizer.b2 == 0.98


def test_packed_rows_have_room_for_every_prediction():
    """Any split of a row into examples needs at most as many slots as there are."""
    config = load()
    data, masking = config.data, config.masking
    assert data.packing
    for first in range(8, data.max_seq_length - 8):
        lengths = [first, data.max_seq_length - first]
        while len(lengths) < data.max_examples_per_row:
            longest = lengths.pop(lengths.index(max(lengths)))
            lengths += [longest // 2, longest - longest // 2]
        wanted = [max(1, round(masking.masked_lm_prob * length)) for length in lengths]
        needed = sum(min(number, masking.max_predictions_per_seq) for number in wanted)
        assert needed <= config.predictions_per_row


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("model.embedding_size=64", 64),
        ("model.embedding_size=None", None),
        ("masking.final_masked_lm_prob=0.3", 0.3),
        ("numerics.embedding_dropout=0", 0.0),
    ],
)
def test_a_field_may_be_a_number_or_none(flag, expected):
    path, _, _ = flag.partition("=")
    found = functools.reduce(getattr, path.split("."), load(flag))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", ["many", "", "0.5", "[64]"])
def test_another_value_than_a_number_or_none_is_refused(value):
    message = f"config.model.embedding_size must be a number or None, not '{re.escape(value)}'"
    with pytest.raises(UserError, match=message):
        load(f"model.embedding_size={value}")


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
        assert read_pretrain_config(path) == config


def test_a_saved_config_is_checked(tmp_path):
    fields = load().to_dict()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields | {"steps": 0}))
    with pytest.raises(UserError, match=r"config\.json: config\.steps must be positive, not 0"):
        read_pretrain_config(path)
    path.write_text(json.dumps(fields | {"model": {**fields["model"], "num_heads": "4"}}))
    with pytest.raises(UserError, match=r"config\.model\.num_heads must be int, not '4'"):
        read_pretrain_config(path)


def test_a_field_that_a_saved_config_lacks_has_its_default():
    """So a field that is new does not close older workdirs."""
    fields = load().to_dict()
    del fields["model"]["initializer_range"], fields["objective"]
    assert build(PretrainConfig, fields).model.initializer_range == Architecture().initializer_range
    assert build(PretrainConfig, fields).objective == load().objective


OLD_OPTIMIZER = {
    "learning_rate": 6e-3,
    "warmup_steps": 5,
    "poly_power": 0.5,
    "b1": 0.8,
    "b2": 0.99,
    "eps": 1e-6,
    "bias_correction": True,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "gradient_accumulation": 2,
}


@pytest.mark.parametrize(
    ("name", "schedule", "expected"),
    [
        ("lamb", "poly", Lamb(6e-3, 5, Poly(0.5), gradient_accumulation=2, b1=0.8, b2=0.99)),
        ("sgd", "linear", Sgd(6e-3, 5, gradient_accumulation=2, momentum=0.8)),
        ("adafactor", "linear", Adafactor(6e-3, 5, gradient_accumulation=2)),
    ],
)
def test_optimizers_of_older_configs(name, schedule, expected, tmp_path):
    """All once had one set of fields, in use or not."""
    optimizer = OLD_OPTIMIZER | {"name": name, "schedule": schedule}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(load().to_dict() | {"optimizer": optimizer}))
    assert read_pretrain_config(path).optimizer == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.remat=full", "numerics.remat=full"),
        ("model.hidden_dropout=0.2", "numerics.hidden_dropout=0.2"),
        ("data.masking=span", "masking=span"),
        ("data.masked_lm_prob=0.3", "masking.masked_lm_prob=0.3"),
        ("data.max_predictions_per_seq=7", "masking.max_predictions_per_seq=7"),
    ],
)
def test_overrides_of_fields_that_have_moved(old, new):
    assert load(old) == load(new)


def test_the_reference_lists_every_field():
    """docs/config.md is made anew with `python -m bert_jax.config.reference > docs/config.md`."""
    assert (ROOT / "docs" / "config.md").read_text() == reference()
    for path, _ in leaves(PretrainConfig()):
        assert path.rpartition(".")[2] in reference()


def test_one_config_file_does_not_leak_into_the_next(tmp_path):
    load()
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"empty\.py: AttributeError"):
        load_config(PretrainConfig, [f"--config={tmp_path / 'empty.py'}"])


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
    assert (
        load_config(PretrainConfig, [f"--config={tmp_path / 'recipe.py'}"]).model.hidden_size == 256
    )


def test_phases_become_stages():
    config = load("phases[0].steps=200", "phases[1].data.max_seq_length=256", recipe="bert_base.py")
    assert config.steps == 100_200
    first, second = config.stages()
    assert (first.first_step, first.last_step) == (0, 200)
    assert (second.first_step, second.last_step) == (200, 100_200)
    assert first.config.optimizer.warmup_steps == 2
    assert second.config.optimizer.warmup_steps == 1_000
    data = second.config.data
    assert (data.max_seq_length, data.max_examples_per_row) == (256, 8)
    assert second.config.masking.max_predictions_per_seq == 40
    names = ("steps", "data", "masking", "optimizer")
    same = {name: getattr(first.config, name) for name in names}
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


def test_a_phase_may_change_any_field():
    """Here the masking strategy with a field of its own, and the layout."""
    recipe = "bert_base.py:tiny"
    config = load(
        "phases[1].masking=span",
        "phases[1].masking.max_words=4",
        "phases[1].mesh.fsdp=2",
        "phases[0].numerics.attention=xla",
        recipe=recipe,
    )
    first, second = (stage.config for stage in config.stages())
    assert (first.masking, second.masking.max_words) == (load(recipe=recipe).masking, 4)
    assert second.masking.max_predictions_per_seq == 80
    assert (first.mesh.fsdp, second.mesh.fsdp) == (1, 2)
    assert (first.numerics.attention, second.numerics.attention) == ("xla", "auto")
    path = f"--config={CONFIGS / recipe}"
    assert load_config(PretrainConfig, [path, "--config.phases[0].steps=5"]).steps == 100_005

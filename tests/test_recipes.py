"""Every recipe of this repository builds, in each of its phases, without computing anything."""

import importlib
from pathlib import Path

import jax
import pytest
from configured import configured

from bert_jax.api.plan import abstract_batch, planned_step
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.pretraining import Stage
from bert_jax.config.recipes import load_config
from bert_jax.report.flops import pretraining_flops_per_example
from bert_jax.tasks import Task

pytestmark = pytest.mark.core

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = [p.name for p in sorted(CONFIGS.glob("*.py")) if not p.name.startswith("finetune")]
REFERENCE = importlib.import_module("mlperf_large").REFERENCE


def load(recipe: str):
    return configured(recipe)


def stages() -> list:
    return [
        pytest.param(stage, id=f"{recipe} {stage.name}".strip())
        for recipe in RECIPES
        for stage in load(recipe).stages()
    ]


@pytest.mark.parametrize("stage", stages())
def test_recipe_builds(stage: Stage):
    config = stage.config
    mesh = config.mesh.mesh()
    program = planned_step(config, mesh)
    key = jax.eval_shape(lambda: program.dropout_key(0))
    state = program.abstract_state
    after, metrics = jax.eval_shape(program.step, state, abstract_batch(config, mesh), key)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["mlm_count"].shape == ()
    assert config.predictions_per_row < config.data.max_seq_length
    assert config.optimizer.warmup_steps < config.steps


@pytest.mark.parametrize("recipe", RECIPES)
def test_docstring_holds_command_source_and_cost(recipe):
    text = importlib.import_module(Path(recipe).stem).__doc__
    assert "bert-jax pretrain --config=" in text or "bash launch/" in text
    if recipe != "quickstart.py":
        assert f"--config={Path(recipe).stem}" in text
        assert "https://" in text
        assert "Cost: " in text or recipe == "bert.py"


@pytest.mark.parametrize(
    ("recipe", "flops"),
    [("bert_base.py", 2.4e19), ("bert_large.py", 8.2e19), ("bert_large_lamb.py", 1.6e20)],
)
def test_cost_in_the_docstring(recipe, flops):
    total = 0.0
    for stage in load(recipe).stages():
        model, data = stage.config.model, stage.config.data
        predictions = stage.config.masking.max_predictions_per_seq
        example = pretraining_flops_per_example(
            model, length=data.max_seq_length, predictions=predictions
        )
        total += stage.config.steps * data.batch_size * example
    assert total == pytest.approx(flops, rel=0.03)
    assert f"Cost: {flops:.1e} FLOPs".replace("e+", "e") in importlib.import_module(
        Path(recipe).stem
    ).__doc__.replace("\n", " ")


@pytest.mark.parametrize("batch_size", REFERENCE)
def test_mlperf_reaches_its_target_within_the_schedule(batch_size):
    """The reference needs less than the steps of its schedule and more than half of them."""
    config = load(f"mlperf_large.py:{batch_size}")
    assert config.data.batch_size == batch_size
    assert config.target_mlm_accuracy == 0.72
    assert 0.5 < config.target_rows / batch_size / config.steps < 1
    # The reference looked every 25,000 samples or so; its samples are multiples of that.
    assert config.eval_every * batch_size == pytest.approx(25_000, rel=0.1)


@pytest.mark.parametrize("task", Task.kinds())
def test_finetuning_recipe_builds(task):
    arguments = [f"--config={CONFIGS / 'finetune.py'}:{task}", "--config.init_from=model"]
    if not task.startswith("glue/"):
        arguments += ["--config.task.train=train.tsv", "--config.task.dev=dev.tsv"]
    if task == "glue/ax":  # is for testing alone
        return
    config = load_config(FinetuneConfig, arguments).task
    assert config.called() == task
    if task.startswith("glue/"):
        assert config.train == f"tfds:{task}:train"
        assert not config.test_labelled

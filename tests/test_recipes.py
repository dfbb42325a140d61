"""Every recipe of this repository builds, in each of its phases, without computing anything."""

import bisect
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from configured import configured

from bert_jax.api.plan import abstract_batch, planned_step
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.pretraining import Stage
from bert_jax.config.recipes import load_config
from bert_jax.data.batch_sizes import BatchSizes
from bert_jax.errors import UserError
from bert_jax.fields import FRACTION, build, fields_of, fits, is_group, type_of
from bert_jax.objective.protocol import Objective
from bert_jax.pretraining.stages import flops_per_row, learning_rate
from bert_jax.report.flops import pretraining_flops_per_example
from bert_jax.tasks import ExtractionTask, GenerationTask, Task

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
    words = ("mntp", "clm") if config.objective.called() == "hybrid" else ("mlm",)
    assert all(metrics[f"{head}_count"].shape == () for head in words)
    assert config.predictions_per_row < config.data.max_seq_length
    assert config.optimizer.warmup_steps < config.steps


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_takes_any_number_of_steps(recipe):
    """Fields that are derived from it stay in their bounds."""
    names = [f"phases[{index}].steps" for index in range(len(load(recipe).phases))] or ["steps"]
    for steps in range(1, 11):
        config = configured(recipe, **dict.fromkeys(names, steps))
        assert config.steps == steps * len(names)
        assert config.checkpoint_every > 0


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
    [
        ("bert_base.py", 2.4e19),
        ("bert_large.py", 8.2e19),
        ("bert_large_lamb.py", 1.6e20),
        ("modernbert.py", 1.8e21),
        ("ettin.py", 1.8e21),
        ("neobert.py", 3.3e21),
        ("mosaicbert.py", 2.7e19),
        ("gptbert.py", 3.6e18),
        ("mmbert.py", 3.4e21),
        ("roberta.py", 1.3e21),
        ("babyberta.py", 1.4e16),
        ("esm2.py", 4.6e21),
    ],
)
def test_cost_in_the_docstring(recipe, flops):
    total = 0.0
    for stage in load(recipe).stages():
        model, data = stage.config.model, stage.config.data
        predictions = stage.config.masking.max_predictions_per_seq
        example = pretraining_flops_per_example(
            model, length=data.max_seq_length, predictions=predictions
        )
        total += BatchSizes(data).first_row(stage.config.steps) * example
    assert total == pytest.approx(flops, rel=0.04)  # two digits
    assert f"Cost: {flops:.1e} FLOPs".replace("e+", "e") in importlib.import_module(
        Path(recipe).stem
    ).__doc__.replace("\n", " ")


# What the sources say at points of the schedule: billions of tokens -> rate, rows, length, share of
# predicted tokens, RoPE base of the global layers (0 without RoPE).
SHORT, LONG = (4_608, 1_024), (576, 8_192)


def grown(start: int, growth: float, billions: float) -> tuple[int, int]:
    """Rows and length where batches grow, by so many rows a step, in the first `growth` tokens."""
    return round((start**2 + (4_608**2 - start**2) * billions / growth) ** 0.5), 1_024


SCHEDULES = {
    "modernbert.py": {
        0.0: (0.0, 768, 1_024, 0.3, 1e4),
        1.5: (4e-4, *grown(768, 50, 1.5), 0.3, 1e4),
        3.0: (8e-4, *grown(768, 50, 3), 0.3, 1e4),
        25.0: (8e-4, *grown(768, 50, 25), 0.3, 1e4),
        100.0: (8e-4, *SHORT, 0.3, 1e4),
        1718.9: (8e-4, *SHORT, 0.3, 1e4),
        1719.1: (7.92e-4, *LONG, 0.3, 16e4),
        1719 + 62.5: (6e-4, *LONG, 0.3, 16e4),
        1719 + 249.9: (4e-4, *LONG, 0.3, 16e4),
        1969 + 12.5: (2.08e-4, *LONG, 0.15, 16e4),
        1969 + 49.9: (1.638e-5, *LONG, 0.15, 16e4),
    },
    "ettin.py:17m": {
        0.0: (0.0, 1_152, 1_024, 0.3, 1e4),
        1.0: (7.5e-4, *grown(1_152, 125, 1), 0.3, 1e4),
        2.0: (1.5e-3, *grown(1_152, 125, 2), 0.3, 1e4),
        4.0: (3e-3, *grown(1_152, 125, 4), 0.3, 1e4),
        60.0: (3e-3, *grown(1_152, 125, 60), 0.3, 1e4),
        1700.0: (3e-3, *SHORT, 0.3, 1e4),
        1719 + 40.0: (2.4e-3, *LONG, 0.3, 16e4),
        1719 + 160.0: (1.8e-3, *LONG, 0.3, 16e4),
        1969 + 2.0: (1.212e-3, *LONG, 0.15, 16e4),
        1969 + 32.0: (3.48e-4, *LONG, 0.15, 16e4),
        1969 + 49.9: (6.143e-5, *LONG, 0.15, 16e4),
    },
    "neobert.py": {
        0.0: (0.0, 2_048, 1_024, 0.2, 1e4),
        2.097152: (5e-5, 2_048, 1_024, 0.2, 1e4),
        4.194304: (1e-4, 2_048, 1_024, 0.2, 1e4),
        300 * 2.097152: (7.75e-5, 2_048, 1_024, 0.2, 1e4),
        450 * 2.097152: (5.5e-5, 2_048, 1_024, 0.2, 1e4),
        600 * 2.097152: (3.25e-5, 2_048, 1_024, 0.2, 1e4),
        900 * 2.097152: (1e-5, 2_048, 1_024, 0.2, 1e4),
        950 * 2.097152: (1e-5, 2_048, 1_024, 0.2, 1e4),
        1001 * 2.097152: (1e-5, 512, 4_096, 0.2, 1e4),
        1049 * 2.097152: (1e-5, 512, 4_096, 0.2, 1e4),
    },
    "roberta.py": {
        4.194304 * thousands: (rate, 8_192, 512, 0.15, 0.0)
        for thousands, rate in {
            0: 0.0,
            6: 1.5e-4,
            12: 3e-4,
            23.9: 5.975e-4,
            24: 5.712e-4,
            50: 5.4e-4,
            100: 4.8e-4,
            250: 3e-4,
            400: 1.2e-4,
            499: 1.2e-6,
        }.items()
    },
    "mosaicbert.py": {
        0.524288 * thousands: (rate, 4_096, 128, 0.3, 0.0)
        for thousands, rate in {
            0: 0.0,
            1: 1.190e-4,
            2: 2.381e-4,
            4: 4.762e-4,
            7: 4.51e-4,
            14: 4.02e-4,
            28: 3.04e-4,
            35: 2.55e-4,
            56: 1.08e-4,
            69: 1.7e-5,
        }.items()
    },
    "gptbert.py:small": {
        # The tokens of a batch grow in a line from a quarter at step 0 to 32,768 rows at 7,812.
        128 / 1e9 * (8_192 * step + 24_576 * step**2 / 15_624): (
            rate,
            round(8_192 + 24_576 * step / 7_812),
            128,
            0.3,
            0.0,
        )
        for step, rate in {
            0: 0,
            62: 0.00705,
            124: 0.0141,
            781: 0.01387,
            1953: 0.01241,
            3906: 0.007916,
            5468: 0.004105,
            7000: 0.001756,
            7687: 0.00141,
            7750: 0.000705,
        }.items()
    },
    "mmbert.py": {
        0.0: (0.0, 384, 1_024, 0.25, 1e4),
        1.5: (4e-4, *grown(384, 60, 1.5), 0.25, 1e4),
        3.0: (8e-4, *grown(384, 60, 3), 0.25, 1e4),
        1000.0: (8e-4, *SHORT, 0.25, 1e4),
        2299.9: (8e-4, *SHORT, 0.25, 1e4),
        2300.1: (8e-4, *LONG, 0.15, 16e4),
        2899.9: (8e-4, *LONG, 0.15, 16e4),
        2900 + 25.0: (4.08e-4, *LONG, 0.05, 16e4),
        2900 + 64.0: (1.728e-4, *LONG, 0.05, 16e4),
        2900 + 99.9: (1.639e-5, *LONG, 0.05, 16e4),
    },
    "babyberta.py": {
        2.048e-3 * thousands: (1e-4 * share, 16, 128, 0.15, 0.0)
        for thousands, share in {
            0: 0.0,
            6: 0.25,
            12: 0.5,
            24: 1.0,
            37.6: 0.9,
            58: 0.75,
            92: 0.5,
            126: 0.25,
            146.4: 0.1,
            153.2: 0.05,
        }.items()
    },
    "electra.py:small": {
        128 * 128 / 1e6 * thousands: (rate, 128, 128, 0.15, 0.0)
        for thousands, rate in {
            0: 0.0,
            5: 2.5e-4,
            10: 4.95e-4,
            100: 4.5e-4,
            250: 3.75e-4,
            500: 2.5e-4,
            750: 1.25e-4,
            900: 5e-5,
            990: 5e-6,
            999: 5e-7,
        }.items()
    },
    "esm2.py:8m": {
        2.097152 * thousands: (4e-4 * share, 2_048, 1_024, 0.15, 1e4)
        for thousands, share in {
            0: 0.0,
            1: 0.5,
            2: 0.996,
            50: 0.9,
            100: 0.8,
            225: 0.55,
            400: 0.2,
            450: 0.1,
            475: 0.1,
            499: 0.1,
        }.items()
    },
    "crammed.py": {  # of the longest run that its budget may bring; from three quarters on
        0.943718400 * percent / 1e-3: (1e-3 * share, 8_192, 128, 0.25, 0.0)
        for percent, share in {
            0.75: 1.0,
            0.775: 0.9,
            0.8: 0.8,
            0.825: 0.7,
            0.85: 0.6,
            0.875: 0.5,
            0.9: 0.4,
            0.925: 0.3,
            0.95: 0.2,
            0.975: 0.1,
        }.items()
    },
}


@pytest.mark.parametrize("recipe", SCHEDULES)
def test_a_recipe_follows_its_source(recipe):
    stages = load(recipe).stages()
    for billions, expected in SCHEDULES[recipe].items():
        tokens = billions * 1e9
        for stage in stages:
            config = replace(stage.config, budget_hours=0.0)  # whose rate follows the clock
            sizes, rows = BatchSizes(config.data), tokens / config.data.max_seq_length
            step = bisect.bisect_left(range(config.steps), rows, key=sizes.first_row)
            if step < config.steps:
                break
            tokens -= sizes.first_row(config.steps) * config.data.max_seq_length
        found_rows, grows = sizes.rows(step), step < config.data.growth_steps
        # Ours grow by some rows at a time, theirs by one a device.
        assert abs(found_rows - expected[1]) <= config.data.rows_of_growth * grows + 1, billions
        expected = (expected[0], found_rows, *expected[2:])
        found = (
            float(learning_rate(config)(step)),
            found_rows,
            config.data.max_seq_length,
            config.masking.masked_lm_prob,
            getattr(config.model.position_embedding, "theta", 0.0),
        )
        tolerance = 0.01
        if recipe == "gptbert.py:small":  # whose cosine ends 1.6 % of the steps later than ours
            tolerance = 0.06
        elif grows and step < config.optimizer.warmup_steps:  # by steps; theirs is by tokens
            tolerance = 0.5
        assert found == pytest.approx(expected, rel=tolerance), billions


def test_gptbert_learns_what_its_source_does():
    objective = load("gptbert.py").objective
    assert objective == build(Objective, {"name": "hybrid", "causal_share": 0.0625, "z_loss": 1e-4})


@pytest.mark.parametrize(
    ("size", "generator", "masked"),
    [("small", 64, 0.15), ("base", 256, 0.15), ("large", 256, 0.25)],
)
def test_electra_learns_what_its_source_does(size, generator, masked):
    config = load(f"electra.py:{size}")
    assert (config.objective.called(), config.objective.weight) == ("replaced_token", 50.0)
    assert config.objective.embeddings == "shared"
    smaller = config.objective.encoders(config.model)[1]
    assert (smaller.hidden_size, smaller.intermediate_size) == (generator, 4 * generator)
    assert (smaller.num_layers, smaller.num_heads) == (config.model.num_layers, generator // 64)
    assert config.masking.masked_lm_prob == masked
    if size == "small":
        total = config.steps * config.data.batch_size * flops_per_row(config)
        assert total == pytest.approx(1.1e18, rel=0.05)


# What the sources say of masking, besides the share of the predicted tokens.
MASKING = {
    "babyberta.py": {"mask_share": 0.9, "random_share": 0.1},
    "crammed.py": {"mask_share": 0.8, "random_share": 0.1},
    "neobert.py": {"mask_share": 1.0, "random_share": 0.0},
    "electra.py:small": {
        "mask_share": 0.85,
        "random_share": 0.0,
        "max_predictions_per_seq": 19,
    },
    "gptbert.py": {
        "lengths": "uniform",
        "max_words": 3,
        "final_masked_lm_prob": 0.15,
        "mask_share": 0.8,
        "random_share": 0.1,
    },
}


@pytest.mark.parametrize("recipe", MASKING)
def test_a_recipe_masks_as_its_source(recipe):
    masking = load(recipe).masking
    assert {name: getattr(masking, name) for name in MASKING[recipe]} == MASKING[recipe]


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


def other(kind: type, name: str) -> tuple[str, Any]:
    """A value of a field that is not its default, on the command line and in a recipe."""
    declared, annotation = fields_of(kind)[name], type_of(kind, name)
    default, choices = declared.default, declared.metadata["choices"]
    if name == "metric_names":
        named = "spearman" if getattr(kind(), "regression", False) else "macro_f1,accuracy"
        if kind in (ExtractionTask, GenerationTask):
            named = "rouge2,rouge1"
        return named, tuple(named.split(","))
    if name in ("thresholds", "class_weights"):
        named = f"{(*kind().label_names, 'b')[0]}=0.25"
        return named, (named,)
    if choices:
        chosen = next(choice for choice in choices if choice != default)
        return chosen, chosen
    if annotation is bool:
        return str(not default), not default
    if annotation in (int, float):
        value = default + (0.25 if declared.metadata["bounds"] == FRACTION else 3)
        return str(value), value
    if annotation is str:
        return "latin-1", "latin-1"
    if fits(annotation, "b"):
        return "b", "b"
    return "b,c", ("b", "c")


OPTIONS = [
    (task, name)
    for task, kind in Task.kinds().items()
    for name in fields_of(kind)
    if not is_group(type_of(kind, name))  # whose fields are set one by one
]


@pytest.mark.parametrize(("task", "name"), OPTIONS)
def test_every_option_works_on_the_command_line_and_in_a_recipe(task, name, tmp_path):
    kind = Task.kinds()[task]
    text, value = other(kind, name)
    needed = {"train": "a.tsv", "dev": "b.tsv"}
    if name == "regression":  # has no classes, and other metrics
        needed |= {"labels": "", "metric_names": ""}
    if name in ("labels", "thresholds", "class_weights") and task == "glue/stsb":
        needed |= {"regression": "False"}
    flags = [f"--config.task.{field}={of}" for field, of in needed.items() if field != name]
    recipe = f"--config={CONFIGS / 'finetune.py'}:{task}"
    for group in ("task", "task.options"):  # the second is of older versions
        given = [recipe, "--config.init_from=m", *flags, f"--config.{group}.{name}={text}"]
        assert getattr(load_config(FinetuneConfig, given).task, name) == value
    own = tmp_path / "own.py"
    own.write_text(
        "import finetune\n\n\ndef get_config():\n"
        f"    config = finetune.get_config({task!r})\n"
        f"    config.task.{name} = {value!r}\n    return config\n"
    )
    found = load_config(FinetuneConfig, [f"--config={own}", "--config.init_from=m", *flags])
    assert getattr(found.task, name) == value


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("metric_names=f1,accuracy", ("f1", "accuracy")),
        ("metric_names=f1", ("f1",)),
        ("metric_names=", ("accuracy",)),
        ("metric_names=('f1',)", ("f1",)),
        ("labels=0,1", ("0", "1")),
        ("labels=no, yes", ("no", "yes")),
        ('labels=(("no", "0"), ("yes", "1"))', (("no", "0"), ("yes", "1"))),
        ("labels=[['no', '0'], 'yes']", (("no", "0"), "yes")),
        ("text_a=premise,sentence1", ("premise", "sentence1")),
        ("text_a=#1 String", "#1 String"),
        ("text_a=1", "1"),
        ('text_a="a, b"', "a, b"),
        ("text_a=('a, b', 'c')", ("a, b", "c")),
        ("text_b=", ""),
        ("index=id", "id"),
    ],
)
def test_names_on_the_command_line(flag, names):
    given = ["--config.init_from=m", "--config.task.train=a", "--config.task.dev=b"]
    given = [f"--config={CONFIGS / 'finetune.py'}:classification", *given, f"--config.task.{flag}"]
    task = load_config(FinetuneConfig, given).task
    assert getattr(task, flag.partition("=")[0]) == names


def test_names_that_are_none():
    given = [f"--config={CONFIGS / 'finetune.py'}:classification", "--config.task.labels=(0, 1)"]
    with pytest.raises(UserError, match=r"config.task.labels must be .*, not \(0, 1\) \(tuple\)"):
        load_config(FinetuneConfig, given)


def test_the_tuned_quickstart_has_all_steps_of_its_ladder():
    plain, modern, tuned = (
        configured(f"quickstart.py{name}") for name in ("", ":modern", ":tuned")
    )
    assert tuned.model == modern.model != plain.model
    rate = learning_rate(tuned)
    rates = [float(rate(step)) for step in (200, 2400, 2800, 4000)]
    assert rates == pytest.approx([3e-3, 3e-3, 1.5e-3, 0])
    shares = [tuned.masking.masked_lm_prob, tuned.masking.final_masked_lm_prob]
    assert shares == [0.3, 0.15]
    assert tuned.masking.heldout_masked_lm_prob == plain.masking.masked_lm_prob
    assert tuned.masking.max_predictions_per_seq == 10  # 30 % of 32 tokens

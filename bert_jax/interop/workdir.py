"""Directories of bert_jax: those of training runs, and converted ones that hold only a model."""

from etils import epath

from bert_jax.config.saved import read_model_config, read_pretrain_config, read_task
from bert_jax.data.tokenizer_json import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import to_plain
from bert_jax.interop.configs import check_labels, check_vocabulary
from bert_jax.interop.portable import HeadFields, Portable, structure_of
from bert_jax.interop.shapes import check_shapes, parameter_shapes
from bert_jax.model.generator import GENERATOR, split_generator
from bert_jax.model.lora import has_factors
from bert_jax.model.model import Model
from bert_jax.model.parameters import Params
from bert_jax.model.teacher import without_projection
from bert_jax.storage import read_json, write_json
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.weights import TRAINED

CONFIG_FILE = "config.json"


def read_workdir(
    path: epath.Path,
    step: int | None = None,
    *,
    weights: str = TRAINED,
    lowercase: bool | None = None,
) -> Portable:
    """Reads a model without the optimizer's state.

    Args:
      path: directory of a training run or of `write_workdir`, of any version.
      step: checkpoint to read; None for the newest.
      weights: which, see `bert_jax.train.weights`.
      lowercase: whether the vocabulary is uncased; must agree with what the directory says.

    Raises:
      UserError: there is no model, or it is damaged.
    """
    architecture, numerics, labels = read_model_config(path / CONFIG_FILE)
    with Checkpoints(path, read_only=True) as checkpoints:
        trained, _ = checkpoints.read_params(step, weights)
    if has_factors(trained):
        raise UserError(
            f"{path}: the checkpoints of a run with lora_rank hold only what it trains: use its "
            f"best model, {path / 'best'}"
        )
    params = without_projection(trained)
    tokenizer = load_tokenizer(path, lowercase=lowercase)
    check_vocabulary(path / CONFIG_FILE, architecture, tokenizer)
    task = read_task(path / CONFIG_FILE)
    head = read_json(path / CONFIG_FILE, HeadFields)
    meaning = (head.problem_type, head.vectors)
    generator = None
    if GENERATOR in params:
        params, of_generator = split_generator(params)
        objective = read_pretrain_config(path / CONFIG_FILE).objective
        smaller = objective.encoders(architecture)[-1]
        generator = Portable(smaller, numerics, tokenizer, of_generator)
        check_params(path, structure_of(generator), of_generator)
    model = Portable(architecture, numerics, tokenizer, params, labels, task, *meaning, generator)
    check_labels(path / CONFIG_FILE, labels, model.outputs)
    check_params(path, structure_of(model), params)
    return model


def write_workdir(path: epath.Path, model: Portable) -> None:
    """Writes a model as checkpoint 0, with its vocabulary and `config.json`."""
    path.mkdir(parents=True, exist_ok=True)
    model.tokenizer.save(path)
    with Checkpoints(path) as checkpoints:
        checkpoints.save(0, {"params": model.params}, {})
    config = {
        "model": to_plain(model.architecture),
        "numerics": to_plain(model.numerics),
        "labels": list(model.labels),
        **({"task": model.task} if model.task else {}),
        **({"problem_type": model.problem_type} if model.problem_type else {}),
        **({"vectors": to_plain(model.vectors)} if model.vectors else {}),
    }
    write_json(path / CONFIG_FILE, config)


def check_params(path: epath.Path, model: Model, params: Params) -> None:
    """Raises UserError, naming `path`, if parameters do not fit a model."""
    check_shapes(path, parameter_shapes(model), params)

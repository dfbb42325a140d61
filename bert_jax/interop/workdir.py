"""Our own directories: those of training runs, and converted ones that hold a model alone."""

import dataclasses
import json

from etils import epath

from bert_jax.config import read_model_config
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.interop.configs import check_vocabulary
from bert_jax.interop.portable import Portable
from bert_jax.interop.tensors import num_classes
from bert_jax.model.heads import parts_of
from bert_jax.train.build import build_model, check_params
from bert_jax.train.checkpoints import Checkpoints

CONFIG_FILE = "config.json"


def read_workdir(
    path: epath.Path, step: int | None = None, *, lowercase: bool | None = None
) -> Portable:
    """Reads a model without the optimizer's state.

    Args:
      path: of a training run, or what `write_workdir` wrote.
      step: which checkpoint; None for the newest.
      lowercase: of the vocabulary, which the directory says: only allowed to agree.

    Raises:
      UserError: nothing of the kind is there, or it is damaged.
    """
    config, labels = read_model_config(path / CONFIG_FILE)
    with Checkpoints(path, read_only=True) as checkpoints:
        params, _ = checkpoints.read_params(step)
    wordpiece = load_wordpiece(path, lowercase=lowercase)
    check_vocabulary(path / CONFIG_FILE, config, wordpiece)
    model = build_model(config, None, parts_of(params), num_classes(params))
    check_params(path, model, params)
    return Portable(config, wordpiece, params, labels)


def write_workdir(path: epath.Path, model: Portable) -> None:
    """Writes a model as checkpoint 0, with its vocabulary and `config.json`."""
    path.mkdir(parents=True, exist_ok=True)
    model.wordpiece.save(path)
    with Checkpoints(path) as checkpoints:
        checkpoints.save(0, {"params": model.params}, {})
    config = {"model": dataclasses.asdict(model.config), "labels": model.labels}
    (path / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

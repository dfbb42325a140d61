"""Reads a model of any format."""

import logging
from collections.abc import Callable

from etils import epath

from bert_jax.config.saved import read_model_config
from bert_jax.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE
from bert_jax.errors import UserError
from bert_jax.interop import encoder_decoder, google_tf, huggingface, workdir
from bert_jax.interop.choices import no_model
from bert_jax.interop.configs import lineage_in, read_fields, without_spare_rows
from bert_jax.interop.portable import Portable
from bert_jax.interop.tensors import Report
from bert_jax.interop.tokenizer import read_tokenizer
from bert_jax.model.architecture import Architecture
from bert_jax.model.generator import GENERATOR
from bert_jax.model.heads import REPLACED_TOKEN
from bert_jax.storage import is_remote, read_json
from bert_jax.train.weights import TRAINED

_log = logging.getLogger(__name__)


def read(
    path: epath.PathLike,
    step: int | None = None,
    *,
    weights: str = TRAINED,
    lowercase: bool | None = None,
    strict: bool = True,
    report: Report = _log.info,
) -> Portable:
    """Reads a model; its format is detected from the files.

    Args:
      path: workdir of a training run or a converted model (local or gs://); Hugging Face
        directory; directory or prefix of a Google checkpoint.
      step: checkpoint of a workdir to read; None for the newest.
      weights: which of a workdir, "trained", "ema" or "average:N"; see `bert_jax.train.weights`.
      lowercase: whether the vocabulary is uncased; required if no file says, else must agree.
      strict: raise on tensors that have no place in the model, instead of leaving them out.
      report: called with a line for each thing left out or changed.

    Raises:
      UserError: there is no model, or it is damaged.
    """
    path = epath.Path(path)
    reader = _reader(path)
    if reader is workdir.read_workdir:
        model = workdir.read_workdir(path, step, weights=weights, lowercase=lowercase)
    elif step is not None:
        raise UserError(f"{path}: not a training workdir, so there is no step {step}")
    elif weights != TRAINED:
        raise UserError(f"{path}: not a training workdir, so it has no weights {weights!r}")
    elif is_remote(path):
        raise UserError(f"{path}: only workdirs are read from object storage; copy it to a disk")
    else:
        model = reader(path, lowercase=lowercase, strict=strict, report=report)
    beside = path / GENERATOR  # of a converted model
    if REPLACED_TOKEN.part in model.params and not model.generator and beside.is_dir():
        model = model._replace(
            generator=read(beside, lowercase=lowercase, strict=strict, report=report)
        )
    return model


def read_architecture(path: epath.PathLike) -> Architecture:
    """The architecture of a model, without its parameters.

    Raises:
      UserError: there is no model, or its config or vocabulary cannot be read.
    """
    path = epath.Path(path)
    reader = _reader(path)
    if reader is workdir.read_workdir:
        return read_model_config(path / workdir.CONFIG_FILE)[0]
    module = google_tf if reader is google_tf.read_google else huggingface
    folder = path if path.is_dir() else path.parent
    config_file = folder / module.CONFIG_FILE
    if reader is encoder_decoder.read_encoder_decoder:
        _, architecture, _ = encoder_decoder.read_halves(config_file)
    else:
        fields = read_json(config_file)
        architecture, _ = read_fields(config_file, fields, lineage_in(config_file, fields))
    return without_spare_rows(
        config_file, architecture, read_tokenizer(folder, lowercase=casing(folder))
    )[0]


def casing(path: epath.Path, otherwise: bool = True) -> bool | None:
    """The casing to read a vocabulary with: `otherwise`, if no file of a model says it."""
    says = any((path / name).exists() for name in (CONFIG_FILE, TOKENIZER_FILE))
    return None if says else otherwise


def _reader(path: epath.Path) -> Callable[..., Portable]:
    config_file = path / huggingface.CONFIG_FILE
    if config_file.exists():
        fields = read_json(config_file)
        if encoder_decoder.is_encoder_decoder(fields):
            return encoder_decoder.read_encoder_decoder
        return workdir.read_workdir if "model" in fields else huggingface.read_huggingface
    if (path / google_tf.CONFIG_FILE).exists() or google_tf.is_checkpoint(path):
        return google_tf.read_google
    raise no_model(str(path))

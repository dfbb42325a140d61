"""Reads a model of any format."""

import logging

from etils import epath

from bert_jax.errors import UserError
from bert_jax.interop import google_tf, huggingface, workdir
from bert_jax.interop.choices import no_model
from bert_jax.interop.portable import Portable
from bert_jax.interop.tensors import Report
from bert_jax.storage import is_remote, read_json

_log = logging.getLogger(__name__)


def read(
    path: epath.PathLike,
    step: int | None = None,
    *,
    lowercase: bool | None = None,
    strict: bool = True,
    report: Report = _log.info,
) -> Portable:
    """Reads a model; its format is detected from the files.

    Args:
      path: workdir of a training run or a converted model (local or gs://); Hugging Face
        directory; directory or prefix of a Google checkpoint.
      step: checkpoint of a workdir to read; None for the newest.
      lowercase: whether the vocabulary is uncased; required if no file says, else must agree.
      strict: raise on tensors that have no place in the model, instead of leaving them out.
      report: called with a line for each thing left out or changed.

    Raises:
      UserError: there is no model, or it is damaged.
    """
    path = epath.Path(path)
    config_file = path / huggingface.CONFIG_FILE
    if config_file.exists() and "model" in read_json(config_file):
        return workdir.read_workdir(path, step, lowercase=lowercase)
    if step is not None:
        raise UserError(f"{path}: not a training workdir, so there is no step {step}")
    if config_file.exists():
        reader = huggingface.read_huggingface
    elif (path / google_tf.CONFIG_FILE).exists() or google_tf.is_checkpoint(path):
        reader = google_tf.read_google
    else:
        raise no_model(str(path))
    if is_remote(path):
        raise UserError(f"{path}: only workdirs are read from object storage; copy it to a disk")
    return reader(path, lowercase=lowercase, strict=strict, report=report)

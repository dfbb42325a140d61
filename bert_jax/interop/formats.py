"""Reads a model from whatever holds one."""

import logging

from etils import epath

from bert_jax.errors import UserError
from bert_jax.interop import google_tf, huggingface, workdir
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
    """Reads a model; what kind of directory it is in is seen from its files.

    Args:
      path: workdir of a training run, or a converted one (local or gs://); directory of Hugging
        Face; directory or prefix of a checkpoint of Google.
      step: which checkpoint of a workdir; None for the newest.
      lowercase: of the vocabulary; needed where no file says, and only allowed to agree.
      strict: refuse tensors that have no place in the model, instead of leaving them out.
      report: is told of everything that is not taken as it is.

    Raises:
      UserError: nothing of the kind is there, or it is damaged.
    """
    path = epath.Path(path)
    config_file = path / huggingface.CONFIG_FILE
    if config_file.exists() and "model" in read_json(config_file):
        return workdir.read_workdir(path, step, lowercase=lowercase)
    if step is not None:
        raise UserError(f"{path}: no training workdir, so there is no step {step}")
    if config_file.exists():
        reader = huggingface.read_huggingface
    elif (path / google_tf.CONFIG_FILE).exists() or google_tf.is_checkpoint(path):
        reader = google_tf.read_google
    else:
        raise UserError(
            f"{path}: no model there, neither {huggingface.CONFIG_FILE} (of bert_jax or "
            f"Hugging Face) nor {google_tf.CONFIG_FILE} (of Google)"
        )
    if is_remote(path):
        raise UserError(f"{path}: of object storage only workdirs are read; copy it to a disk")
    return reader(path, lowercase=lowercase, strict=strict, report=report)

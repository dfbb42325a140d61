"""Reads and writes google-research/bert checkpoints: bert_model.ckpt, bert_config.json, vocab.txt.

They have TensorFlow 1's names and format; only this module imports TensorFlow.
"""

import os
import re
from functools import partial
from typing import Any

from etils import epath

from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError
from bert_jax.interop.configs import (
    default_labels,
    read_fields,
    without_spare_rows,
    write_fields,
)
from bert_jax.interop.lineages import BERT
from bert_jax.interop.portable import Portable
from bert_jax.interop.positions import with_learned_positions
from bert_jax.interop.tensors import Naming, Report, Stored, read_params, write_tensors
from bert_jax.interop.tokenizer import read_tokenizer
from bert_jax.model.heads import HEADS, PARTS, parts_of
from bert_jax.storage import read_json, write_json

CONFIG_FILE = "bert_config.json"
PREFIX = "bert_model.ckpt"
LAYER_NORM_EPS = 1e-12  # a constant of Google's code
# Adam's moments, as Google's code and TensorFlow's optimizer name them, LAMB's, and counters.
OPTIMIZER = re.compile(r"(^|/)((adam|lamb)_[mv]|Adam(_1)?|beta[12]_power|global_step)$")
# Google trained its first models with the exact GELU and later ones with an approximation, under
# the same name. Hugging Face reads it as the exact one.
GELU_READ = "hidden_act: gelu is read as the exact function; Google's later code approximates it"
GELU_WRITTEN = {
    "gelu": "hidden_act: written as gelu, which Google's later code approximates by tanh",
    "gelu_tanh": "hidden_act: gelu_tanh is written as gelu, which others read as exact",
}

# Names follow from those of Hugging Face, except for the heads of Google's run_classifier.py and
# run_squad.py; there is none for these parts.
SCOPES = {"sequence_classifier": "", "answer_span": "cls/squad/"}
WITHOUT_NAMES = ("token_classifier", "replaced_token", "multiple_choice")
GOOGLE_PARTS = tuple(part for part in PARTS if part not in WITHOUT_NAMES)


def _tensor(name: str, module: str, leaf: str, is_norm: bool) -> tuple[str, bool]:
    scope = name.replace("layer.{}", "layer_{}").replace(".", "/") + "/"
    if leaf == "embedding":
        return scope.removesuffix("/"), False
    if module in HEADS:  # heads are plain variables, not layers
        names = {"kernel": "output_weights", "bias": "output_bias"}
        return SCOPES.get(module, scope) + names[leaf], leaf == "kernel"
    names = {"scale": "gamma", "bias": "beta"} if is_norm else {"kernel": "kernel", "bias": "bias"}
    return scope + names[leaf], False


NAMING = Naming(BERT.modules, _tensor)


def is_checkpoint(path: epath.Path) -> bool:
    """Whether `path` is the prefix of a checkpoint's files."""
    return (path.parent / f"{path.name}.index").exists()


def read_google(
    path: epath.Path, *, lowercase: bool | None, strict: bool, report: Report
) -> Portable:
    """Reads a checkpoint.

    Args:
      path: local directory with one checkpoint, or the prefix of one, as in DIR/bert_model.ckpt.
      lowercase, strict, report: see `read_huggingface`.

    Raises:
      UserError: not a BERT encoder, damaged, or TensorFlow is not installed.
    """
    directory = path if path.is_dir() else path.parent
    fields = read_json(directory / CONFIG_FILE)
    architecture, numerics = read_fields(directory / CONFIG_FILE, fields, BERT)
    tokenizer = read_tokenizer(directory, lowercase=lowercase)
    architecture, rows = without_spare_rows(directory / CONFIG_FILE, architecture, tokenizer)
    if path.is_dir():
        prefixes = sorted(file.with_suffix("") for file in path.glob("*.index"))
        if len(prefixes) != 1:
            names = ", ".join(prefix.name for prefix in prefixes) or "none"
            raise UserError(
                f"{path}: must hold one checkpoint, but holds {names}; name one in the path"
            )
        path = prefixes[0]
    tf = _tensorflow()
    try:
        reader = tf.train.load_checkpoint(str(path))
        dtypes = reader.get_variable_to_dtype_map()
        stored = {
            name: Stored(tuple(shape), dtypes[name].name, partial(reader.get_tensor, name))
            for name, shape in sorted(reader.get_variable_to_shape_map().items())
        }
        slots = [name for name in stored if OPTIMIZER.search(name)]
        if slots:
            report(f"ignored: {len(slots)} optimizer variables, such as {slots[0]}")
        stored = {name: tensor for name, tensor in stored.items() if name not in slots}
        params = read_params(
            stored, NAMING, architecture, GOOGLE_PARTS, rows=rows, strict=strict, report=report
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (tf.errors.OpError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: damaged or cut short ({reason})") from error
    if architecture.hidden_act == "gelu":
        report(GELU_READ)
    model = Portable(architecture, numerics, tokenizer, params)
    return model._replace(labels=default_labels(model.outputs) if model.outputs > 1 else ())


def write_google(path: epath.Path, model: Portable, report: Report) -> None:
    """Writes what Google's code takes as --init_checkpoint, and a tokenizer_config.json.

    Args:
      path: empty local directory.
      model: model to write.
      report: called with a line for each thing that the format cannot express.

    Raises:
      UserError: the format has no place for a part or for the config, or TensorFlow is missing.
    """
    if homeless := [part for part in parts_of(model.params) if part not in GOOGLE_PARTS]:
        raise UserError(
            f"Google's format has no {', '.join(homeless)}: leave it out with --architecture"
        )
    if not isinstance(model.tokenizer, WordPiece):
        raise UserError(
            f"Google's format has only WordPiece, and not {model.tokenizer.description}"
        )
    model = with_learned_positions(model, report)
    fields = write_fields(model.architecture, model.numerics, BERT)
    eps = fields.pop("layer_norm_eps")
    if eps != LAYER_NORM_EPS:
        raise UserError(f"layer_norm_eps is {eps}; Google's code has {LAYER_NORM_EPS}")
    if model.architecture.hidden_act not in GELU_WRITTEN:
        raise UserError(f"hidden_act is {model.architecture.hidden_act}; Google's code has gelu")
    write_json(path / CONFIG_FILE, fields | {"hidden_act": "gelu"})
    report(GELU_WRITTEN[model.architecture.hidden_act])
    if model.labels:
        report(f"left out: the names of the classes, {', '.join(model.labels)}")
    model.tokenizer.save(path)
    names, tensors = zip(*write_tensors(NAMING, model))
    _tensorflow().raw_ops.SaveV2(
        prefix=str(path / PREFIX),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=tensors,
    )


def _tensorflow() -> Any:
    # Silences TensorFlow's lines about the processor and oneDNN: nothing here computes with it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow
    except ImportError as error:
        raise UserError("Google's checkpoints need TensorFlow: pip install tensorflow") from error
    return tensorflow

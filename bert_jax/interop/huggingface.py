"""Directories of Hugging Face `transformers`, of any class of BERT, both ways.

Nothing that a file says is executed: a pickle is read by PyTorch's `weights_only` loader alone.
"""

import contextlib
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from bert_jax.errors import UserError
from bert_jax.interop.choices import ARCHITECTURES
from bert_jax.interop.configs import check_vocabulary, default_labels, read_fields, write_fields
from bert_jax.interop.portable import Portable
from bert_jax.interop.positions import with_learned_positions
from bert_jax.interop.tensors import (
    MODULES,
    Report,
    Stored,
    read_params,
    same_values,
    write_tensors,
)
from bert_jax.interop.tokenizer import read_wordpiece, write_wordpiece
from bert_jax.model.heads import HEADS, PARTS, parts_of
from bert_jax.storage import read_json, write_json

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # either may be shards with an index
# A class without heads has no `bert.` in front, and old checkpoints have TensorFlow's names.
RENAMED = (
    (re.compile(r"^(?=(embeddings|encoder|pooler)\.)"), "bert."),
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
)
CONSTANTS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
TIED = {  # copy -> what it is a copy of
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# JAX makes bfloat16 known to numpy.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_huggingface(
    path: epath.Path, *, lowercase: bool | None, strict: bool, report: Report
) -> Portable:
    """Reads a directory that `save_pretrained` wrote.

    Args:
      path: local directory.
      lowercase: needed where no tokenizer file says, and only allowed to agree.
      strict: refuse tensors that have no place in the model, instead of leaving them out.
      report: is told of everything that is not taken as it is.

    Raises:
      UserError: not a BERT encoder, or damaged.
    """
    fields = read_json(path / CONFIG_FILE)
    architecture, numerics = read_fields(path / CONFIG_FILE, fields)
    wordpiece = read_wordpiece(path, lowercase=lowercase)
    check_vocabulary(path / CONFIG_FILE, architecture, wordpiece)
    named = fields.get("architectures")
    classes = [name for name in ARCHITECTURES if isinstance(named, list) and name in named]
    try:
        with _open_weights(Path(path)) as stored:
            stored = _without_copies(_usual_names(stored), report)
            parts = _possible_parts(classes, stored)
            params = read_params(
                stored, "huggingface", architecture, parts, strict=strict, report=report
            )
        model = Portable(architecture, numerics, wordpiece, params)
        model = model._replace(labels=_labels(fields, model.outputs))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for name in classes:
        for part in ARCHITECTURES[name]:
            if part not in parts_of(params):
                report(f"missing: {part}, which a {name} has")
    return model


def write_huggingface(path: epath.Path, model: Portable, report: Report) -> None:
    """Writes what `AutoModel` and `AutoTokenizer` load without a warning.

    Args:
      path: empty local directory.
      model: whose class is the one that has just its parts.
      report: is told what transformers will add, and what is not as it was.

    Raises:
      UserError: no class has just these parts, or the model has no vector a position.
    """
    class_name = class_of(parts_of(model.params))
    model = with_learned_positions(model, report)
    if not parts_of(model.params):
        report("missing: pooler; transformers adds a random one, but for add_pooling_layer=False")
    fields = {
        "architectures": [class_name],
        "model_type": "bert",
        **write_fields(model.architecture, model.numerics),
        "pad_token_id": model.wordpiece.pad_id,
        "tie_word_embeddings": True,
    }
    if labels := model.labels or default_labels(model.outputs):
        fields["id2label"] = {str(id_): label for id_, label in enumerate(labels)}
        fields["label2id"] = {label: id_ for id_, label in enumerate(labels)}
    write_json(path / CONFIG_FILE, fields)
    # Of a BertModel the encoder is the whole, and its names have no prefix.
    prefix = "bert." if class_name == "BertModel" else ""
    tensors = {
        name.removeprefix(prefix): values for name, values in write_tensors("huggingface", model)
    }
    safetensors.numpy.save_file(tensors, path / WEIGHT_FILES[0], metadata={"format": "pt"})
    # The library writes files that nobody else may read.
    shutil.copymode(path / CONFIG_FILE, path / WEIGHT_FILES[0])
    write_wordpiece(path, model.wordpiece, model.architecture.max_position_embeddings)


def class_of(parts: Sequence[str]) -> str:
    """The class that has just these parts; an encoder alone is a BertModel, too."""
    for name, has in ARCHITECTURES.items():
        if set(has) == set(parts or ("pooler",)):
            return name
    raise UserError(
        f"no class of transformers has just {', '.join(parts)}: choose one by --architecture"
    )


@contextlib.contextmanager
def _open_weights(directory: Path) -> Iterator[dict[str, Stored]]:
    """All tensors of the weight files, which stay open meanwhile."""
    with contextlib.ExitStack() as stack:
        for name in WEIGHT_FILES:
            open_file = _open_pickle if name.endswith(".bin") else partial(_open_safetensors, stack)
            index = epath.Path(directory / f"{name}.index.json")
            if (directory / name).exists():
                yield open_file(directory / name)
                return
            if index.exists():
                yield _open_shards(directory, read_json(index).get("weight_map"), open_file)
                return
        raise UserError(f"neither {' nor '.join(WEIGHT_FILES)} is there")


def _open_shards(
    directory: Path, weight_map: object, open_file: Callable[[Path], dict[str, Stored]]
) -> dict[str, Stored]:
    if not isinstance(weight_map, dict) or {type(x) for x in weight_map.values()} - {str}:
        raise UserError("the index of the shards has no weight_map of names to files")
    stored: dict[str, Stored] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not (directory / shard).is_file():
            raise UserError(f"{shard} is missing, of which the index of the shards tells")
        stored |= open_file(directory / shard)
    if missing := weight_map.keys() - stored.keys():
        raise UserError(f"{min(missing)} is in no shard, though the index has it")
    return stored


def _open_safetensors(stack: contextlib.ExitStack, path: Path) -> dict[str, Stored]:
    try:
        file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    except safetensors.SafetensorError as error:
        raise UserError(f"{path.name} is damaged or cut short ({error})") from error
    stored = {}
    for name in file.keys():  # noqa: SIM118  (no mapping)
        tensor = file.get_slice(name)
        dtype = DTYPES.get(tensor.get_dtype(), tensor.get_dtype())
        stored[name] = Stored(tuple(tensor.get_shape()), dtype, partial(file.get_tensor, name))
    return stored


def _open_pickle(path: Path) -> dict[str, Stored]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path.name} needs PyTorch: pip install torch, or save it anew as safetensors"
        ) from error
    try:
        mmap = zipfile.is_zipfile(path)  # as PyTorch writes since 1.6
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged bytes raise anything
        raise UserError(
            f"{path.name} is damaged or holds more than tensors, of which nothing is executed"
        ) from error
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise UserError(f"{path.name} is not a state_dict: a mapping of names to tensors")
    return {
        name: Stored(
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            partial(_as_numpy, tensor),
        )
        for name, tensor in state.items()
    }


def _as_numpy(tensor: Any) -> np.ndarray:
    return tensor.float().numpy()


def _usual_names(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    usual: dict[str, Stored] = {}
    for name, tensor in stored.items():
        for pattern, replacement in RENAMED:
            name = pattern.sub(replacement, name)
        if name in usual:
            raise UserError(f"{name} is there twice, under names old and new")
        usual[name] = tensor
    return usual


def _without_copies(stored: Mapping[str, Stored], report: Report) -> dict[str, Stored]:
    """The tensors without those that follow from others."""
    stored = dict(stored)
    for name in CONSTANTS:
        if stored.pop(name, None):
            report(f"ignored: {name} (a constant)")
    for name, original in TIED.items():
        if name not in stored:
            continue
        copy = stored.pop(name)
        if not same_values(copy, stored.setdefault(original, copy)):
            raise UserError(f"{name} differs from {original}; BERT has one table for both")
        report(f"ignored: {name} (tied to {original})")
    return stored


def _possible_parts(classes: Sequence[str], stored: Mapping[str, Stored]) -> list[str]:
    """All parts, but of those that share a name the one that the classes of the config have."""
    uses = Counter(MODULES[part] for part in HEADS)
    named = {part for name in classes for part in ARCHITECTURES[name]}
    parts = [part for part in PARTS if part not in HEADS or uses[MODULES[part]] == 1]
    for shared in (module for module, count in uses.items() if count > 1):
        if not any(name.startswith(f"{shared}.") for name in stored):
            continue
        candidates = [part for part in HEADS if MODULES[part] == shared]
        meant = [part for part in candidates if part in named]
        if not meant:
            possible = [name for name, has in ARCHITECTURES.items() if set(has) & set(candidates)]
            raise UserError(
                f"there is a {shared}, but the architectures of config.json name neither "
                f"{' nor '.join(possible)}"
            )
        parts += meant[:1]
    return parts


def _labels(fields: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Names of the classes of a classifier; none of one output, which is a regression."""
    if classes < 2:
        return ()
    ids = [str(id_) for id_ in range(classes)]
    labels = fields.get("id2label") or dict(zip(ids, default_labels(classes)))
    if not isinstance(labels, dict) or sorted(labels) != sorted(ids):
        raise UserError(f"id2label does not name the {len(ids)} classes of the classifier")
    return tuple(str(labels[id_]) for id_ in ids)

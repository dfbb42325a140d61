"""Reads and writes directories of Hugging Face `transformers`, of any BERT class.

No code in a file is executed: pickles are read only by PyTorch's `weights_only` loader.
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
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # either may be sharded, with an index
# Names in a class without heads lack the `bert.`, and old checkpoints have TensorFlow's names.
RENAMED = (
    (re.compile(r"^(?=(embeddings|encoder|pooler)\.)"), "bert."),
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
)
CONSTANTS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
TIED = {  # copy -> original
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# JAX registers bfloat16 with numpy.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_huggingface(
    path: epath.Path, *, lowercase: bool | None, strict: bool, report: Report
) -> Portable:
    """Reads a directory that `save_pretrained` wrote.

    Args:
      path: local directory.
      lowercase: whether the vocabulary is uncased; required if no tokenizer file says, else must
        agree.
      strict: raise on tensors that have no place in the model, instead of leaving them out.
      report: called with a line for each thing left out or changed.

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
      model: model to write, as the class that has exactly its parts.
      report: called with a line for each thing that changes or that transformers will add.

    Raises:
      UserError: no class has exactly these parts, or the positions are not one vector each.
    """
    class_name = class_of(parts_of(model.params))
    model = with_learned_positions(model, report)
    if not parts_of(model.params):
        report("missing: pooler; transformers adds a random one, unless add_pooling_layer=False")
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
    # A BertModel is the encoder alone, and its names have no prefix.
    prefix = "bert." if class_name == "BertModel" else ""
    tensors = {
        name.removeprefix(prefix): values for name, values in write_tensors("huggingface", model)
    }
    safetensors.numpy.save_file(tensors, path / WEIGHT_FILES[0], metadata={"format": "pt"})
    # The library writes files that only their owner may read.
    shutil.copymode(path / CONFIG_FILE, path / WEIGHT_FILES[0])
    write_wordpiece(path, model.wordpiece, model.architecture.max_position_embeddings)


def class_of(parts: Sequence[str]) -> str:
    """The class that has exactly these parts; an encoder alone is also a BertModel."""
    for name, has in ARCHITECTURES.items():
        if set(has) == set(parts or ("pooler",)):
            return name
    raise UserError(
        f"no class of transformers has just {', '.join(parts)}: choose one with --architecture"
    )


@contextlib.contextmanager
def _open_weights(directory: Path) -> Iterator[dict[str, Stored]]:
    """All tensors of the weight files, which stay open during the block."""
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
            raise UserError(f"{shard} is missing, though the index of the shards has it")
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
    for name in file.keys():  # noqa: SIM118  (not a mapping)
        tensor = file.get_slice(name)
        dtype = DTYPES.get(tensor.get_dtype(), tensor.get_dtype())
        stored[name] = Stored(tuple(tensor.get_shape()), dtype, partial(file.get_tensor, name))
    return stored


def _open_pickle(path: Path) -> dict[str, Stored]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path.name} needs PyTorch: pip install torch, or save it again as safetensors"
        ) from error
    try:
        mmap = zipfile.is_zipfile(path)  # PyTorch's format since 1.6
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged bytes raise all kinds
        raise UserError(
            f"{path.name} is damaged or holds more than tensors, which is not loaded"
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
            raise UserError(f"{name} is there twice, under its old and its new name")
        usual[name] = tensor
    return usual


def _without_copies(stored: Mapping[str, Stored], report: Report) -> dict[str, Stored]:
    """The tensors without constants and copies of others."""
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
    """All parts; of those that share a name, the one that the config's classes have."""
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
    """Names of the classes of a classifier; none for one output, which is a regression."""
    if classes < 2:
        return ()
    ids = [str(id_) for id_ in range(classes)]
    labels = fields.get("id2label") or dict(zip(ids, default_labels(classes)))
    if not isinstance(labels, dict) or sorted(labels) != sorted(ids):
        raise UserError(f"id2label does not name the {len(ids)} classes of the classifier")
    return tuple(str(labels[id_]) for id_ in ids)

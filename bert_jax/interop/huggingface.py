"""Reads and writes directories of Hugging Face `transformers`, of the classes of any lineage.

No code in a file is executed: pickles are read only by PyTorch's `weights_only` loader.
"""

import contextlib
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from bert_jax.errors import UserError
from bert_jax.fields import Plain
from bert_jax.interop.choices import ARCHITECTURES
from bert_jax.interop.configs import (
    default_labels,
    lineage_in,
    lineage_of,
    read_fields,
    without_spare_rows,
    write_fields,
)
from bert_jax.interop.lineages import BERT, Lineage
from bert_jax.interop.portable import HeadFields, Portable
from bert_jax.interop.positions import with_learned_positions
from bert_jax.interop.sentence_transformers import read_vector_settings
from bert_jax.interop.tensors import (
    Report,
    Stored,
    huggingface_naming,
    read_params,
    same_values,
    write_tensors,
)
from bert_jax.interop.tokenizer import read_tokenizer, write_tokenizer
from bert_jax.json_values import parse_json, typed
from bert_jax.model.heads import PARTS, part_of, parts_of
from bert_jax.storage import errors_name, read_json, write_json

CONFIG_FILE = "config.json"
CHECKSUMS = "bert_jax_crc32"  # in the metadata of a file that we wrote: CRC-32 by tensor, as JSON
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # either may be sharded, with an index
RENAMED = (  # old checkpoints have TensorFlow's names
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
    (re.compile(r"\.dense_act\."), ".dense."),  # NVIDIA's
)
# JAX registers bfloat16 with numpy.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class ClassFields(HeadFields):
    """The fields of a config.json that say what the heads are."""

    architectures: list[str] | None = None
    id2label: dict[str, str | int] | None = None


@dataclass(frozen=True)
class ShardIndex:
    """The index of the shards: the file of each tensor."""

    weight_map: dict[str, str]


def read_huggingface(
    path: epath.Path, *, lowercase: bool | None, strict: bool, report: Report
) -> Portable:
    """Reads a directory that `save_pretrained` wrote, of a class of `LINEAGES`.

    Args:
      path: local directory.
      lowercase: whether the vocabulary is uncased; required if no tokenizer file says, else must
        agree.
      strict: raise on tensors that have no place in the model, instead of leaving them out.
      report: called with a line for each thing left out or changed.

    Raises:
      UserError: another kind of model, or damaged.
    """
    fields = read_json(path / CONFIG_FILE)
    lineage = lineage_in(path / CONFIG_FILE, fields)
    architecture, numerics = read_fields(path / CONFIG_FILE, fields, lineage)
    heads = typed(fields, ClassFields, str(path / CONFIG_FILE))
    tokenizer = read_tokenizer(path, lowercase=lowercase)
    architecture, rows = without_spare_rows(path / CONFIG_FILE, architecture, tokenizer)
    classes = [name for name in ARCHITECTURES if name in (heads.architectures or ())]
    try:
        with open_weights(Path(path)) as stored:
            stored = usual_names(_without_prefix(stored, lineage, report), lineage)
            stored = without_copies(stored, lineage, report)
            parts = _possible_parts(classes, stored, lineage, strict)
            params = read_params(
                stored,
                huggingface_naming(lineage, parts),
                architecture,
                parts,
                rows=rows,
                strict=strict,
                report=report,
            )
        model = Portable(architecture, numerics, tokenizer, params)
        model = model._replace(vectors=read_vector_settings(path, report))
        if "sequence_classifier" in params:
            model = model._replace(problem_type=heads.problem_type)
        model = model._replace(labels=_labels(heads, model.outputs))
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
    model = with_learned_positions(model, report)
    parts = parts_of(model.params)
    lineage = lineage_of(model.architecture, parts)
    class_name = class_of(parts, lineage)
    if "pooler" in lineage.classes[class_name] and not parts:
        report("missing: pooler; transformers adds a random one, unless add_pooling_layer=False")
    for name, use in lineage.unread.items():
        report(f"missing: {lineage.base}.{name}* ({use}); transformers adds a random one")
    fields = fields_of_class(class_name, model, lineage)
    if "sequence_classifier" in model.params:
        # Else transformers would give the score of a regression through a sigmoid.
        problem_type = model.problem_type or ("regression" if model.outputs == 1 else None)
        fields |= {"problem_type": problem_type} if problem_type else {}
    if labels := model.labels or default_labels(model.outputs):
        fields["id2label"] = {str(id_): label for id_, label in enumerate(labels)}
        fields["label2id"] = {label: id_ for id_, label in enumerate(labels)}
    write_json(path / CONFIG_FILE, fields)
    # A BertModel is the encoder alone, and its names have no prefix.
    prefix = f"{lineage.base}." if class_name.endswith("Model") else ""
    naming = huggingface_naming(lineage, parts)
    tensors = dict(write_tensors(naming, model)) | lineage.buffers(model.architecture)
    save_weights(path, {name.removeprefix(prefix): values for name, values in tensors.items()})
    write_tokenizer(path, model.tokenizer, model.architecture.max_position_embeddings)


def fields_of_class(class_name: str, model: Portable, lineage: Lineage) -> Plain:
    """What config.json says of a model as a class of transformers, without its labels.

    Raises:
      UserError: the lineage has no place for a block of the model.
    """
    fields: Plain = {
        "architectures": [class_name],
        "model_type": lineage.model_type,
        **write_fields(model.architecture, model.numerics, lineage),
    }
    fields.setdefault("pad_token_id", model.tokenizer.pad_id)
    fields["tie_word_embeddings"] = model.architecture.tied_decoder
    if fields["pad_token_id"] != model.tokenizer.pad_id:
        raise UserError(
            f"model.position_embedding.offset is {fields['pad_token_id'] + 1}; in "
            f"{lineage.model_type} it is the id of the padding + 1, {model.tokenizer.pad_id + 1}"
        )
    if lineage is not BERT:  # else transformers takes ids of its own for these tokens
        ids = {"cls": model.tokenizer.cls_id, "sep": model.tokenizer.sep_id}
        fields |= {"bos_token_id": ids["cls"], "eos_token_id": ids["sep"]}
        fields |= {"cls_token_id": ids["cls"], "sep_token_id": ids["sep"]}
        fields.setdefault("mask_token_id", model.tokenizer.mask_id)
    return fields


def save_weights(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the file of the weights in a directory."""
    # The library's own writer hides errors of the disk, and only the owner may read its files.
    checksums = {name: zlib.crc32(values.tobytes()) for name, values in tensors.items()}
    metadata = {"format": "pt", CHECKSUMS: json.dumps(checksums)}
    content = safetensors.numpy.save(dict(tensors), metadata=metadata)
    with errors_name(path / WEIGHT_FILES[0]):
        (path / WEIGHT_FILES[0]).write_bytes(content)


def class_of(parts: Sequence[str], lineage: Lineage) -> str:
    """The class that has exactly these parts; an encoder alone is also a BertModel."""
    for name, has in lineage.classes.items():
        if set(has) == set(parts) or (not parts and has == ("pooler",)):
            return name
    fitting = [name for name, has in lineage.classes.items() if set(has) <= set(parts)]
    instead = f": choose one with --architecture, {' or '.join(fitting)}" if fitting else ""
    raise UserError(f"no class of transformers has just {', '.join(parts)}{instead}")


@contextlib.contextmanager
def open_weights(directory: Path) -> Iterator[dict[str, Stored]]:
    """All tensors of the weight files, which stay open during the block."""
    with contextlib.ExitStack() as stack:
        for name in WEIGHT_FILES:
            open_file = _open_pickle if name.endswith(".bin") else partial(_open_safetensors, stack)
            index = epath.Path(directory / f"{name}.index.json")
            if (directory / name).exists():
                yield open_file(directory / name)
                return
            if index.exists():
                weight_map = read_json(index, ShardIndex).weight_map
                yield _open_shards(directory, weight_map, open_file)
                return
        raise UserError(f"neither {' nor '.join(WEIGHT_FILES)} is there")


def _open_shards(
    directory: Path, weight_map: dict[str, str], open_file: Callable[[Path], dict[str, Stored]]
) -> dict[str, Stored]:
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
    written = (file.metadata() or {}).get(CHECKSUMS, "{}")
    place = f"{path.name}: {CHECKSUMS}"
    checksums = typed(parse_json(written, place), dict[str, int], place)

    def read(name: str) -> np.ndarray:
        values = file.get_tensor(name)
        if checksums and checksums.get(name) != zlib.crc32(values.tobytes()):
            raise UserError(f"{path.name} is damaged: {name} is not what was written")
        return values

    stored = {}
    for name in file.keys():  # noqa: SIM118  (not a mapping)
        tensor = file.get_slice(name)
        dtype = DTYPES.get(tensor.get_dtype(), tensor.get_dtype())
        stored[name] = Stored(tuple(tensor.get_shape()), dtype, partial(read, name))
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
    for name in state if isinstance(state, Mapping) else ():
        if isinstance(state[name], Mapping) and any(map(torch.is_tensor, state[name].values())):
            raise UserError(
                f"{path.name} is not a state_dict, but holds one as {name!r}: save that alone, "
                f"torch.save(torch.load({path.name!r})[{name!r}], {path.name!r})"
            )
    if not isinstance(state, Mapping) or not all(map(_is_plain_tensor, state.values())):
        raise UserError(f"{path.name} is not a state_dict: a mapping of names to tensors")
    return {
        name: Stored(
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            partial(_as_numpy, tensor),
        )
        for name, tensor in state.items()
    }


def _is_plain_tensor(value: Any) -> bool:
    """Whether a value is a dense tensor of numbers in memory."""
    import torch

    return (
        torch.is_tensor(value)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _as_numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().numpy()


def _without_prefix(
    stored: Mapping[str, Stored], lineage: Lineage, report: Report
) -> dict[str, Stored]:
    """The tensors by the names that a class with heads has, without what a wrapper put before them.

    DataParallel writes "module.", torch.compile "_orig_mod.", Lightning often "model.".
    """
    tables = [name for name in stored if f".{name}".endswith(f".{lineage.words}")]
    base = f"{lineage.base}."
    prefixes = sorted({name.removesuffix(lineage.words).removesuffix(base) for name in tables})
    if len(prefixes) > 1:
        names = ", ".join(prefix or "one without prefix" for prefix in prefixes)
        raise UserError(f"there are {len(prefixes)} models ({names}): keep the tensors of one")
    if not prefixes or not prefixes[0]:
        return dict(stored)
    found: dict[str, Stored] = {}
    for name, tensor in stored.items():
        short = name.removeprefix(prefixes[0])
        if short in found:
            raise UserError(f"{short} is there twice, with and without {prefixes[0]}")
        found[short] = tensor
    report(f"read without their prefix: the tensors under {prefixes[0]}")
    return found


def usual_names(stored: Mapping[str, Stored], lineage: Lineage) -> dict[str, Stored]:
    """The tensors by the names that a class with heads has."""
    # Names in a class without heads lack the base, such as "bert.".
    renamed = (
        (re.compile(rf"^(?=({'|'.join(lineage.roots)})\.)"), f"{lineage.base}."),
        *RENAMED,
    )
    usual: dict[str, Stored] = {}
    for name, tensor in stored.items():
        for pattern, replacement in renamed:
            name = pattern.sub(replacement, name)
        if name in usual:
            raise UserError(f"{name} is there twice, under its old and its new name")
        usual[name] = tensor
    return usual


def without_copies(
    stored: Mapping[str, Stored], lineage: Lineage, report: Report
) -> dict[str, Stored]:
    """The tensors without constants, copies of others and what has no place here."""
    stored = dict(stored)
    for name in list(stored):
        short = name.removeprefix(f"{lineage.base}.")
        if re.match(lineage.constants, short):
            del stored[name]
            report(f"ignored: {name} (a constant)")
        for start, use in lineage.unread.items():
            if short.startswith(start):
                del stored[name]
                report(f"left out: {name} ({use})")
    for name, original in lineage.tied.items():
        if name not in stored:
            continue
        copy = stored.pop(name)
        if not same_values(copy, stored.setdefault(original, copy)):
            raise UserError(f"{name} differs from {original}; {lineage.model_type} ties them")
        report(f"ignored: {name} (tied to {original})")
    return stored


def _possible_parts(
    classes: Sequence[str], stored: Mapping[str, Stored], lineage: Lineage, strict: bool
) -> list[str]:
    """The parts that may be there; of those that share a name, the one of the config's classes.

    Without `strict` there may be none, so that the head of another class is left out.
    """
    named = {part for name in classes for part in lineage.classes.get(name, ())}
    own = {
        part: {
            name
            for path, name in (*lineage.modules.items(), *lineage.classifier.items())
            if part_of(path.split("/")) == part
        }
        for part in PARTS
    }
    own = {
        part: names
        for part, names in own.items()
        if any(name.startswith(f"{theirs}.") for theirs in names for name in stored)
    }
    parts = []
    for part, names in own.items():
        rivals = [other for other in own if other != part and own[other] & names]
        if not rivals or part in named:
            parts.append(part)
        elif strict and not named & set(rivals):
            shared = min(set.union(*(own[other] & names for other in rivals)))
            possible = [name for name, has in lineage.classes.items() if {part, *rivals} & set(has)]
            raise UserError(
                f"there is a {shared}, but the architectures of config.json name neither "
                f"{' nor '.join(possible)}: write there which it is, or leave it out by "
                f"`bert-jax convert --no-strict`"
            )
    return parts


def _labels(heads: ClassFields, classes: int) -> tuple[str, ...]:
    """Names of the classes of a classifier; none for one output that is a score."""
    if classes < 2 and not (classes and heads.problem_type == "multi_label_classification"):
        return ()
    ids = [str(id_) for id_ in range(classes)]
    labels = heads.id2label or dict(zip(ids, default_labels(classes)))
    if sorted(labels) != sorted(ids):
        raise UserError(f"id2label does not name the {len(ids)} classes of the classifier")
    names = tuple(str(labels[id_]) for id_ in ids)
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"id2label has the name {repeated[0]!r} twice: give each class its own")
    return names

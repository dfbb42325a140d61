"""Models as StableHLO: their part functions, lowered ahead of time to run without bert_jax.

Reference: https://docs.jax.dev/en/latest/export/export.html.
"""

import dataclasses
import hashlib
import importlib.resources
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from bert_jax import __version__
from bert_jax.config.saved import migrate, model_config
from bert_jax.data.tokenizer_json import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import to_plain
from bert_jax.inference import load_bert
from bert_jax.inference.choices import DEFAULT_PLATFORMS, check_platforms
from bert_jax.inference.functions import Function, part_functions
from bert_jax.interop.configs import check_labels, check_vocabulary
from bert_jax.interop.portable import HeadFields, Portable, structure_of
from bert_jax.interop.shapes import check_shapes, unpadded_shapes
from bert_jax.json_values import typed
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import parts_of
from bert_jax.storage import whole_folder, write_json


def is_exported(path: epath.Path) -> bool:
    """Whether `write_exported` wrote a directory."""
    return (path / load_bert.MANIFEST).exists()


def read_exported(path: epath.Path) -> tuple[Portable, dict[str, Function]]:
    """Reads an exported directory.

    Returns:
      The model, whose vocabulary is not padded, and its functions, as from `part_functions`.

    Raises:
      UserError: the directory is damaged, or this version or this JAX cannot read it.
    """
    try:
        manifest, params, functions = load_bert.read(path)
        # Older manifests have the fields of both in one group, which `migrate` splits.
        fields = {name: manifest[name] for name in manifest if name in ("model", "numerics")}
        architecture, numerics = model_config(migrate(fields))
    except ValueError as error:
        raise UserError(str(error)) from error
    except UserError as error:
        raise UserError(f"{path / load_bert.MANIFEST}: {error}") from error
    tokenizer = load_tokenizer(path)
    check_vocabulary(path / load_bert.MANIFEST, architecture, tokenizer)
    head = typed(manifest, HeadFields, str(path / load_bert.MANIFEST))
    labels, task = tuple(manifest["labels"]), manifest.get("task")  # older ones have no task
    meaning = (head.problem_type, head.vectors)
    model = Portable(architecture, numerics, tokenizer, params, labels, task, *meaning)
    check_labels(path / load_bert.MANIFEST, model.labels, model.outputs)
    check_shapes(path, unpadded_shapes(structure_of(model), architecture), params)
    return model, functions


def write_exported(
    path: epath.PathLike, model: Portable, platforms: Sequence[str] = DEFAULT_PLATFORMS
) -> None:
    """Writes the functions of a model, its parameters, its vocabulary and a loader for them.

    Batch and length stay symbolic, the length up to the number of positions. The vocabulary is not
    padded.

    Args:
      path: directory to write. A local one appears when it is complete; in object storage the
        manifest is written last.
      model: model with any heads.
      platforms: those of `choices.PLATFORMS` to lower for; none of them has to be present.

    Raises:
      UserError: `path` is not empty, or a platform is unknown.
    """
    check_platforms(platforms)
    with whole_folder(path, last=load_bert.MANIFEST) as directory:
        _write(directory, model, tuple(platforms))


def _write(directory: Path, model: Portable, platforms: tuple[str, ...]) -> None:
    # jax.export reads its files with flatbuffers, which JAX does not install.
    vendor = directory / "vendor" / "flatbuffers"
    vendor.mkdir(parents=True)
    for file in importlib.resources.files("flatbuffers").iterdir():
        if file.name.endswith(".py"):
            (vendor / file.name).write_bytes(file.read_bytes())
    (directory / "load_bert.py").write_text(inspect.getsource(load_bert), encoding="utf-8")
    model.tokenizer.save(directory)

    # Scanned, since after loading it is compiled again for every shape.
    numerics = dataclasses.replace(model.numerics, attention="xla", scan_layers=True, remat="none")
    model = model._replace(numerics=numerics)
    structure = structure_of(model)
    shapes = unpadded_shapes(structure, model.architecture)
    arrays = {
        path: array[tuple(map(slice, shapes[path]))]
        for path, array in flatten_dict(model.params, sep="/").items()
    }
    np.savez(directory / load_bert.PARAMS, **arrays)
    # The model works with any number of rows, so the padding rows can be left out.
    params = unflatten_dict(arrays, sep="/")
    functions = {}
    for name, function in part_functions(structure.graphdef, parts_of(params)).items():
        arguments = _abstract_arguments(name, model.architecture)
        # Keeps hardware from rounding the factors of fp32 products to bf16.
        precision = "float32" if numerics.compute_dtype == "float32" else None
        with jax.default_matmul_precision(precision):
            exported = export.export(jax.jit(function), platforms=platforms)(params, *arguments)
        (directory / f"{name}.stablehlo").write_bytes(exported.serialize())
        names = list(inspect.signature(function).parameters)[1:]
        functions[name] = {
            "arguments": dict(zip(names, map(_describe, arguments))),
            "result": _describe(*exported.out_avals),
        }
    manifest = {
        "format": load_bert.FORMAT,
        "version": load_bert.VERSION,
        "model": to_plain(model.architecture),
        "numerics": to_plain(numerics),
        "labels": list(model.labels),
        "task": model.task,
        "problem_type": model.problem_type,
        "vectors": to_plain(model.vectors),
        "pad_id": model.tokenizer.pad_id,
        # Each is called with the nested dict of parameters before these arguments.
        "functions": functions,
        "platforms": list(platforms),
        "files": {
            file.relative_to(directory).as_posix(): _sha256(file)
            for file in sorted(directory.rglob("*"))
            if file.is_file()
        },
        "jax": jax.__version__,
        "bert_jax": __version__,
    }
    manifest["sha256"] = load_bert.digest_of(manifest)
    write_json(directory / load_bert.MANIFEST, manifest)


def _abstract_arguments(name: str, architecture: Architecture) -> list[jax.ShapeDtypeStruct]:
    """Arguments of the function `name` after the parameters, with symbolic batch and length."""
    limit = f"length <= {architecture.max_position_embeddings}"
    batch, length = export.symbolic_shape("batch, length", constraints=[limit])
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def hidden(*leading: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*leading, architecture.hidden_size), jnp.float32)

    special = {
        "encoder": [ids] * 4,
        "attention": [hidden(architecture.num_layers + 1, batch, length), ids],
    }
    return special.get(name) or [hidden(*export.symbolic_shape("n"))]


def _describe(array: jax.ShapeDtypeStruct | jax.core.ShapedArray) -> str:
    """Dtype and shape, as in float32[n,384]."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _sha256(file: Path) -> str:
    with file.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()

"""Models as StableHLO: their part functions lowered ahead of time, to run without their code.

Reference: https://docs.jax.dev/en/latest/export/export.html.
"""

import dataclasses
import hashlib
import importlib.resources
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export

from bert_jax import __version__
from bert_jax.config import ModelConfig, build_model_config
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.inference import load_bert
from bert_jax.inference.choices import DEFAULT_PLATFORMS, check_platforms
from bert_jax.inference.functions import part_functions
from bert_jax.interop.portable import Portable
from bert_jax.interop.tensors import num_classes
from bert_jax.model.heads import parts_of
from bert_jax.storage import files_below, is_remote
from bert_jax.train.build import build_model
from bert_jax.train.state import Params


def is_exported(path: epath.Path) -> bool:
    """Whether `write_exported` wrote a directory."""
    return (path / load_bert.MANIFEST).exists()


def read_exported(path: epath.Path) -> tuple[Portable, dict[str, Callable]]:
    """Reads an exported directory.

    Returns:
      The model, whose vocabulary is not padded, and its functions, as `part_functions` has them.

    Raises:
      UserError: it is damaged, or nothing that this version or this JAX can read.
    """
    try:
        manifest, params, functions = load_bert.read(path)
        config = build_model_config(manifest["model"])
    except ValueError as error:
        raise UserError(str(error)) from error
    except UserError as error:
        raise UserError(f"{path / load_bert.MANIFEST}: {error}") from error
    labels = tuple(manifest["labels"])
    return Portable(config, load_wordpiece(path), params, labels), functions


def write_exported(
    path: epath.PathLike, model: Portable, platforms: Sequence[str] = DEFAULT_PLATFORMS
) -> None:
    """Writes the functions of a model, its parameters, its vocabulary and a loader for them.

    Batch and length stay open, the length up to the number of positions. Nothing is left of the
    padding of the vocabulary.

    Args:
      path: of the directory. A local one appears when it is whole, in object storage the manifest
        comes last.
      model: with any heads.
      platforms: those of `PLATFORMS` to lower for; they need not be here.

    Raises:
      UserError: `path` is in use, or a platform unknown.
    """
    path = epath.Path(path)
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path}: not empty; choose another directory for the export")
    check_platforms(platforms)
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    nearby = None if is_remote(path) else path.parent
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=nearby) as temporary:
        directory = Path(temporary) / "export"
        _write(directory, model, tuple(platforms))
        if not is_remote(path):
            directory.rename(path)
            return
        files = list(files_below(directory))
        for file in sorted(files, key=lambda file: file.name == load_bert.MANIFEST):
            target = path / str(file.relative_to(directory))
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer)


def _write(directory: Path, model: Portable, platforms: tuple[str, ...]) -> None:
    # jax.export reads its files with flatbuffers, which JAX does not bring along.
    vendor = directory / "vendor" / "flatbuffers"
    vendor.mkdir(parents=True)
    for file in importlib.resources.files("flatbuffers").iterdir():
        if file.name.endswith(".py"):
            (vendor / file.name).write_bytes(file.read_bytes())
    (directory / "load_bert.py").write_text(inspect.getsource(load_bert), encoding="utf-8")
    model.wordpiece.save(directory)

    params = _without_padding(model.params, model.config.vocab_size)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {"/".join(key.key for key in path): array for path, array in leaves}
    np.savez(directory / load_bert.PARAMS, **arrays)
    files = [directory / load_bert.PARAMS]
    # Scanned, since whoever loads it compiles it again for every shape.
    config = dataclasses.replace(model.config, attention="xla", scan_layers=True, remat="none")
    graphdef = build_model(config, None, parts_of(params), num_classes(params)).graphdef
    functions = {}
    for name, function in part_functions(graphdef, parts_of(params)).items():
        arguments = _abstract_arguments(name, config)
        # Hardware that would round the factors of fp32 products to bf16 is told not to.
        precision = "float32" if config.compute_dtype == "float32" else None
        with jax.default_matmul_precision(precision):
            exported = export.export(jax.jit(function), platforms=platforms)(params, *arguments)
        files.append(directory / f"{name}.stablehlo")
        files[-1].write_bytes(exported.serialize())
        names = list(inspect.signature(function).parameters)[1:]
        functions[name] = {
            "arguments": dict(zip(names, map(_describe, arguments))),
            "result": _describe(*exported.out_avals),
        }
    manifest = {
        "format": load_bert.FORMAT,
        "version": load_bert.VERSION,
        "model": dataclasses.asdict(config),
        "labels": model.labels,
        "pad_id": model.wordpiece.pad_id,
        # Each is called with the nested dict of parameters before these arguments.
        "functions": functions,
        "platforms": platforms,
        "files": {file.name: _sha256(file) for file in files},
        "jax": jax.__version__,
        "bert_jax": __version__,
    }
    (directory / load_bert.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _without_padding(params: Params, vocab_size: int) -> Params:
    """The model computes with what rows there are, so it can do without those of the padding."""

    def cut(path, array):
        name = "/".join(key.key for key in path)
        in_vocabulary = name in ("bert/embeddings/word/embedding", "masked_lm/bias")
        return array[:vocab_size] if in_vocabulary else array

    return jax.tree_util.tree_map_with_path(cut, params)


def _abstract_arguments(name: str, config: ModelConfig) -> list[jax.ShapeDtypeStruct]:
    """What the function of this name takes after the parameters, batch and length left open."""
    limit = f"length <= {config.max_position_embeddings}"
    batch, length = export.symbolic_shape("batch, length", constraints=[limit])
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def hidden(*leading):
        return jax.ShapeDtypeStruct((*leading, config.hidden_size), jnp.float32)

    special = {
        "encoder": [ids] * 4,
        "attention": [hidden(config.num_layers + 1, batch, length), ids],
    }
    return special.get(name) or [hidden(*export.symbolic_shape("n"))]


def _describe(array: jax.ShapeDtypeStruct) -> str:
    """As in float32[n,384]."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _sha256(file: Path) -> str:
    with file.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()

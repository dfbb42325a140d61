"""Runs a BERT that `bert-jax export` wrote. This file needs only jax and numpy.

    from load_bert import load

    bert = load("exported")
    states = bert.encoder(input_ids)                # [num_layers + 1, batch, length, hidden]
    logits = bert.masked_lm(states[-1, 0, [3, 7]])  # [2, vocab_size], if the model has that head

Token ids are those of vocab.txt or tokenizer.json, which `tokenizers` and `transformers` read. A
function is compiled once for every shape of its arguments: pad texts to a few lengths.
"""

import hashlib
import importlib.util
import json
import pathlib
import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

if importlib.util.find_spec("flatbuffers") is None:  # jax.export reads its files with it
    sys.path.append(str(pathlib.Path(__file__).parent / "vendor"))

# Version 1 has no checksum of the manifest, and none of the files in SINCE_2.
FORMAT, VERSION, OLDEST = "bert_jax export", 2, 1
MANIFEST, PARAMS = "export.json", "params.npz"
SINCE_2 = {"tokenizer_config.json", "load_bert.py"}
FIELDS: dict[str, type] = {
    "version": int,
    "model": dict,
    "labels": list,
    "pad_id": int,
    "functions": dict,
    "files": dict,
    "jax": str,
}


class Bert:
    """An exported model.

    Besides `encoder` and `attention` it has a method for each part that was exported: `pooler`,
    `masked_lm`, `next_sentence`, `sequence_classifier`, `token_classifier`, `answer_span`,
    `replaced_token`, `multiple_choice`. They take hidden states [..., hidden] (`next_sentence` and
    `sequence_classifier` take results of `pooler`, as do `token_classifier` and `answer_span` if
    `architecture["pooler"]` is "transform") and return fp32 [..., outputs], logits except from
    `pooler`. Results are `jax.Array`s.

    Attributes:
      architecture: plain values by field name, such as "hidden_size".
      labels: names of the classes of a classifier.
      task: how texts were read in fine-tuning, plain values by name, such as "max_seq_length", the
        tokens to which longer texts were cut; None if that is not known.
      problem_type: "multi_label_classification" if each class is independent (a sigmoid gives its
        probability), "regression" if the outputs are scores; else None: a softmax over classes.
    """

    def __init__(self, exported: "Exported"):
        self.architecture = exported.manifest["model"]
        self.labels = exported.manifest["labels"]
        self.task = exported.manifest.get("task")
        self.problem_type = exported.manifest.get("problem_type")
        self._pad_id = exported.manifest["pad_id"]
        self._functions = exported.functions
        self._params = jax.device_put(exported.params)

    def encoder(
        self, input_ids: Any, token_type_ids: Any = None, attention_mask: Any = None
    ) -> jax.Array:
        """Encodes rows of tokens.

        Args:
          input_ids: [batch, length] integers, with [CLS] and [SEP].
          token_type_ids: the same shape, 1 in the second text of a pair; default: all 0.
          attention_mask: the same shape, 0 at padding; default: where `input_ids` are not [PAD].

        Returns:
          [num_layers + 1, batch, length, hidden] fp32: the embeddings and every layer.

        Raises:
          ValueError: `input_ids` are not two-dimensional, too long, or outside the vocabulary, or
            `token_type_ids` are outside the model's token types.
        """
        input_ids = np.asarray(input_ids, np.int32)
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be [batch, length], not {list(input_ids.shape)}")
        limit = self.architecture["max_position_embeddings"]
        vocab_size = self.architecture["vocab_size"]
        if input_ids.shape[1] > limit:
            raise ValueError(f"input_ids: {input_ids.shape[1]} tokens, the model takes {limit}")
        if input_ids.min() < 0 or input_ids.max() >= vocab_size:
            raise ValueError(f"input_ids: beyond the vocabulary, which has {vocab_size} tokens")
        if token_type_ids is None:
            token_type_ids = np.zeros_like(input_ids)
        types = self.architecture.get("type_vocab_size", 2)
        if types and (np.min(token_type_ids) < 0 or np.max(token_type_ids) >= types):
            raise ValueError(f"token_type_ids: the model has {types} token type(s), from 0")
        if attention_mask is None:
            attention_mask = input_ids != self._pad_id
        position_ids = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
        rows = (input_ids, token_type_ids, position_ids, attention_mask)
        return self._functions["encoder"](self._params, *(np.asarray(x, np.int32) for x in rows))

    def attention(self, hidden_states: Any, attention_mask: Any) -> jax.Array:
        """Probabilities [num_layers, batch, heads, query, key] from the result of `encoder`."""
        mask = np.asarray(attention_mask, np.int32)
        return self._functions["attention"](self._params, hidden_states, mask)

    def __getattr__(self, name: str) -> Callable[[Any], jax.Array]:
        if name.startswith("_") or name not in self._functions:
            raise AttributeError(f"no {name}; this model has {', '.join(self._functions)}")

        def head(hidden: Any) -> jax.Array:
            hidden = jnp.asarray(hidden)
            rows = hidden.reshape(-1, hidden.shape[-1])
            return self._functions[name](self._params, rows).reshape(*hidden.shape[:-1], -1)

        return head


class Exported(NamedTuple):
    """Contents of an exported directory.

    Attributes:
      manifest: contents of export.json, which also describes the functions.
      params: nested dict of numpy arrays.
      functions: functions of `params` and arrays, by name.
    """

    manifest: dict[str, Any]
    params: dict[str, Any]
    functions: dict[str, Callable[..., jax.Array]]


def load(directory: str) -> Bert:
    """The model in a directory that `bert-jax export` wrote.

    Raises:
      ValueError: there is no model, it is damaged, or this JAX cannot read it.
    """
    return Bert(read(pathlib.Path(directory)))


def read(directory: Any) -> Exported:
    """Reads an exported directory.

    Args:
      directory: a `pathlib.Path`, or another object with its methods.

    Raises:
      ValueError: as from `load`.
    """
    manifest = _read_manifest(directory)
    for name, digest in manifest["files"].items():
        if not (directory / name).exists():
            raise ValueError(f"{directory / name}: no such file; copy or export the model again")
        with (directory / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{directory / name}: damaged; copy or export the model again")
    programs = {name: _read_program(directory, name, manifest) for name in manifest["functions"]}
    params = _read_params(directory / PARAMS, _params_of(programs["encoder"]))
    functions: dict[str, Callable[..., jax.Array]] = {
        name: jax.jit(program.call) for name, program in programs.items()
    }
    return Exported(manifest, params, functions)


def digest_of(manifest: Mapping[str, Any]) -> str:
    """sha256 of the fields of a manifest, without the field that holds it."""
    fields = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _read_manifest(directory: Any) -> dict[str, Any]:
    file = directory / MANIFEST
    if not file.exists():
        raise ValueError(f"{file}: no such file; is {directory} what `bert-jax export` wrote?")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: not JSON ({reason}); copy or export the model again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{file}: not the manifest of an exported model")
    if missing := FIELDS.keys() - manifest.keys():
        raise ValueError(f"{file}: {', '.join(sorted(missing))} missing; export the model again")
    for name, kind in FIELDS.items():
        if type(manifest[name]) is not kind:
            raise ValueError(f"{file}: field {name}: expected {kind.__name__}, got another type")
    version = manifest["version"]
    if not OLDEST <= version <= VERSION:
        raise ValueError(
            f"{file}: format version {version}, this reads {OLDEST} to {VERSION}: use the "
            f"load_bert.py beside it, or a newer bert_jax"
        )
    signed = version >= 2 or "sha256" in manifest
    if signed and manifest.get("sha256") != digest_of(manifest):
        raise ValueError(f"{file}: damaged or changed; copy or export the model again")
    if wrong := [label for label in manifest["labels"] if not isinstance(label, str)]:
        raise ValueError(f"{file}: field labels: {wrong[0]!r} is not a name")
    functions = manifest["functions"].keys()
    if wrong := [name for name in functions if not name.isidentifier()]:
        raise ValueError(f"{file}: field functions: {wrong[0]!r} is not the name of a function")
    if missing := {"encoder", "attention"} - functions:
        raise ValueError(f"{file}: field functions: {', '.join(sorted(missing))} missing")
    for name in manifest["files"]:
        if "\\" in name or {"", ".", ".."} & set(name.split("/")):
            raise ValueError(f"{file}: field files: {name!r} is not a file of {directory}")
    required = {PARAMS, *(f"{name}.stablehlo" for name in functions)}
    if version >= 2:
        vocabulary = "tokenizer.json" if "tokenizer.json" in manifest["files"] else "vocab.txt"
        required |= {vocabulary, *SINCE_2}
    if missing := required - manifest["files"].keys():
        raise ValueError(f"{file}: field files: no checksum of {', '.join(sorted(missing))}")
    return manifest


def _read_program(directory: Any, name: str, manifest: dict[str, Any]) -> export.Exported:
    serialized = bytearray((directory / f"{name}.stablehlo").read_bytes())
    try:
        program = export.deserialize(serialized)
        program.mlir_module()  # else a newer JAX's program would fail only when called
    except Exception as error:  # of several types, none specific to this
        raise ValueError(
            f"{directory}: jax {jax.__version__} cannot read what jax {manifest['jax']} wrote "
            f"({' '.join(str(error).split())}): export the model again, or change jax"
        ) from error
    return program


def _params_of(program: export.Exported) -> dict[str, Any]:
    """The parameters that a program takes, as a nested dict of shapes."""
    (params, *_), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    return dict(params)


def _read_params(file: Any, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a file, each read only if it has the shape that the programs take."""
    try:
        with file.open("rb") as reader, zipfile.ZipFile(reader) as archive:
            return _read_arrays(archive, expected)
    except Exception as error:  # damaged bytes raise all kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: damaged ({reason}); copy or export the model again") from error


def _read_arrays(
    archive: zipfile.ZipFile, expected: Mapping[str, Any], path: str = ""
) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name, like in expected.items():
        if isinstance(like, Mapping):
            arrays[name] = _read_arrays(archive, like, f"{path}{name}/")
            continue
        member = archive.getinfo(f"{path}{name}.npy")
        with archive.open(member) as reader:
            if np.lib.format.read_magic(reader) != (1, 0):
                raise ValueError(f"{path}{name} has another header than numpy writes")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(reader)
            # A small file may say that it expands to any size: nothing is read before this holds.
            size = reader.tell() + like.size * dtype.itemsize
            if (shape, dtype, member.file_size) != (like.shape, like.dtype, size):
                raise ValueError(f"{path}{name} is {dtype}{shape}, not {like.str_short()}")
            values = np.frombuffer(reader.read(), dtype)
        if not np.isfinite(values).all():
            raise ValueError(f"{path}{name} has values that are not finite numbers")
        arrays[name] = values.reshape(shape, order="F" if fortran else "C")
    return arrays

"""Runs a BERT that `bert-jax export` wrote. This file needs only jax and numpy.

    from load_bert import load

    bert = load("exported")
    states = bert.encoder(input_ids)                # [num_layers + 1, batch, length, hidden]
    logits = bert.masked_lm(states[-1, 0, [3, 7]])  # [2, vocab_size], if the model has that head

Token ids are those of vocab.txt, which `tokenizers` and `transformers` read. A function is compiled
once for every shape of its arguments: pad texts to a few lengths.
"""

import hashlib
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

if importlib.util.find_spec("flatbuffers") is None:  # jax.export reads its files with it
    sys.path.append(str(pathlib.Path(__file__).parent / "vendor"))

FORMAT, VERSION = "bert_jax export", 1
MANIFEST, PARAMS = "export.json", "params.npz"
FIELDS = {"version", "model", "labels", "pad_id", "functions", "files", "jax"}


class Bert:
    """An exported model.

    Besides `encoder` and `attention` it has a method for each part that was exported: `pooler`,
    `masked_lm`, `next_sentence`, `sequence_classifier`, `token_classifier`, `answer_span`. They
    take hidden states [..., hidden] (`next_sentence` and `sequence_classifier`: results of
    `pooler`) and return fp32 [..., outputs], logits except from `pooler`. Results are `jax.Array`s.

    Attributes:
      architecture: plain values by field name, such as "hidden_size".
      labels: names of the classes of a classifier.
    """

    def __init__(self, exported: "Exported"):
        self.architecture = exported.manifest["model"]
        self.labels = exported.manifest["labels"]
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
          ValueError: `input_ids` are not two-dimensional, too long, or outside the vocabulary.
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
    params: dict[str, Any] = {}
    with (directory / PARAMS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        for name in arrays.files:
            *modules, leaf = name.split("/")
            tree = params
            for module in modules:
                tree = tree.setdefault(module, {})
            tree[leaf] = arrays[name]
    functions: dict[str, Callable[..., jax.Array]] = {}
    for name in manifest["functions"]:
        serialized = bytearray((directory / f"{name}.stablehlo").read_bytes())
        try:
            exported = export.deserialize(serialized)
            exported.mlir_module()  # else a newer JAX's program would fail only when called
        except Exception as error:  # of several types, none specific to this
            raise ValueError(
                f"{directory}: jax {jax.__version__} cannot read what jax {manifest['jax']} wrote "
                f"({' '.join(str(error).split())}): export the model again, or change jax"
            ) from error
        functions[name] = jax.jit(exported.call)
    return Exported(manifest, params, functions)


def _read_manifest(directory: Any) -> dict[str, Any]:
    file = directory / MANIFEST
    if not file.exists():
        raise ValueError(f"{file}: no such file; is {directory} what `bert-jax export` wrote?")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); copy or export the model again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{file}: not the manifest of an exported model")
    if missing := FIELDS - manifest.keys():
        raise ValueError(f"{file}: {', '.join(sorted(missing))} missing; export the model again")
    if manifest["version"] != VERSION:
        raise ValueError(
            f"{file}: format version {manifest['version']}, this reads {VERSION}: use the "
            f"load_bert.py beside it, or a newer bert_jax"
        )
    return manifest

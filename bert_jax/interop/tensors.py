"""Parameters by the names of others: one table, read and written by the same code.

Tensors of others come one by one, so that no more than one is in memory beside our parameters.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.config import ModelConfig
from bert_jax.errors import UserError
from bert_jax.model.bert import padded_vocab_size, sinusoidal_positions
from bert_jax.model.heads import parts_of

Report = Callable[[str], object]
Style = Literal["huggingface", "google"]

# Leaves and the sizes of their axes: Vocabulary, Positions, token Types, hidden size D,
# Feed-forward, Classes.
NORM = {"scale": "D", "bias": "D"}
DENSE = {"kernel": "DD", "bias": "D"}
# Our module -> Hugging Face's, and its leaves. Google's names follow from these.
LAYER_MODULES = {
    "attention/query": ("attention.self.query", DENSE),
    "attention/key": ("attention.self.key", DENSE),
    "attention/value": ("attention.self.value", DENSE),
    "attention/output": ("attention.output.dense", DENSE),
    "attention_norm": ("attention.output.LayerNorm", NORM),
    "feed_forward/intermediate": ("intermediate.dense", {"kernel": "DF", "bias": "F"}),
    "feed_forward/output": ("output.dense", {"kernel": "FD", "bias": "D"}),
    "feed_forward_norm": ("output.LayerNorm", NORM),
}
MODULES = {
    "bert/embeddings/word": ("bert.embeddings.word_embeddings", {"embedding": "VD"}),
    "bert/embeddings/position": ("bert.embeddings.position_embeddings", {"embedding": "PD"}),
    "bert/embeddings/token_type": ("bert.embeddings.token_type_embeddings", {"embedding": "TD"}),
    "bert/embeddings/norm": ("bert.embeddings.LayerNorm", NORM),
    **{
        f"bert/encoder/layers/{ours}": (f"bert.encoder.layer.{{}}.{theirs}", leaves)
        for ours, (theirs, leaves) in LAYER_MODULES.items()
    },
    "bert/pooler": ("bert.pooler.dense", DENSE),
    "masked_lm/dense": ("cls.predictions.transform.dense", DENSE),
    "masked_lm/norm": ("cls.predictions.transform.LayerNorm", NORM),
    "masked_lm": ("cls.predictions", {"bias": "V"}),
    "next_sentence": ("cls.seq_relationship", {"kernel": "D2", "bias": "2"}),
    "sequence_classifier": ("classifier", {"kernel": "DC", "bias": "C"}),
    "token_classifier": ("classifier", {"kernel": "DC", "bias": "C"}),
    "answer_span": ("qa_outputs", {"kernel": "D2", "bias": "2"}),
}
GOOGLE_HEADS = {"classifier": "", "qa_outputs": "cls/squad/"}  # of run_classifier, run_squad
CLASSIFIERS = ("sequence_classifier", "token_classifier")  # one name for both in others' files
CLASSIFIER_BIAS = {"huggingface": "classifier.bias", "google": "output_bias"}
LAYER = re.compile(r"encoder[./]layer[._](\d+)[./]")
FLOATS = ("float64", "float32", "float16", "bfloat16")


class Stored(NamedTuple):
    """A tensor in a file of theirs: its shape, numpy's name of its type, and how to get it."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Tensor(NamedTuple):
    """A tensor of theirs and its place in our parameters.

    Attributes:
      name, shape: theirs.
      path: in the nested dict.
      layer: its index on the leading axis; None where layers are not stacked.
      transposed: theirs is [outputs, inputs].
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None
    transposed: bool


def read_params(
    stored: Mapping[str, Stored],
    style: Style,
    config: ModelConfig,
    parts: Sequence[str],
    *,
    strict: bool,
    report: Report,
) -> dict[str, Any]:
    """Our parameters from their tensors.

    Args:
      stored: all tensors of a checkpoint by name.
      style: whose names.
      config: of the model.
      parts: of `bert_jax.model.heads.PARTS`, that may be there.
      strict: refuse tensors that have no place in the model, instead of leaving them out.
      report: is told what is left out or converted.

    Returns:
      Nested dict of fp32 arrays; rows that pad the vocabulary are 0.

    Raises:
      UserError: tensors are missing, unknown, of wrong shape or type, or not finite.
    """
    layers = 1 + max((int(m[1]) for m in map(LAYER.search, stored) if m), default=-1)
    if layers != config.num_layers:
        raise UserError(f"the tensors have {layers} layers; the config has {config.num_layers}")
    bias = stored.get(CLASSIFIER_BIAS[style])
    classes = math.prod(bias.shape) if bias else 0
    found = ["encoder"]
    for part in parts:
        if any(t.name in stored for t in _tensors(style, config, [part], classes)):
            found.append(part)
    tensors = list(_tensors(style, config, found, classes))
    _check(stored, tensors, config, strict, report)

    arrays = {
        path: np.zeros(shape, np.float32) for path, shape in _shapes(config, found, classes).items()
    }
    for name, _, path, layer, transposed in tensors:
        values = np.asarray(stored[name].read(), np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{name} has values that are not finite numbers")
        values = values.T if transposed else values
        place = arrays[path] if layer is None else arrays[path][layer]
        place[: len(values)] = values
    return unflatten_dict(arrays)


def write_tensors(
    style: Style, config: ModelConfig, params: Mapping[str, Any], report: Report
) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors by name from our parameters, one by one and without the padding."""
    arrays, parts = flatten_dict(params), ("encoder", *parts_of(params))
    if config.position_embedding == "sinusoidal":
        table = sinusoidal_positions(config.max_position_embeddings, config.hidden_size)
        scaled = np.float32(config.initializer_range) * table
        arrays["bert", "embeddings", "position", "embedding"] = scaled
        config = dataclasses.replace(config, position_embedding="learned")
        report("written as learned positions: the sinusoidal ones")
    for name, shape, path, layer, transposed in _tensors(style, config, parts, num_classes(params)):
        values = arrays[path] if layer is None else arrays[path][layer]
        values = values[: shape[-1] if transposed else shape[0]]
        yield name, np.ascontiguousarray(values.T if transposed else values)


def num_classes(params: Mapping[str, Any]) -> int:
    """Outputs of a classifier; 0 without one."""
    heads = [params[name] for name in CLASSIFIERS if name in params]
    return len(heads[0]["bias"]) if heads else 0


def part_of(path: Sequence[str]) -> str:
    """Which of `bert_jax.model.heads.PARTS` a parameter belongs to, or "encoder"."""
    if path[0] != "bert":
        return path[0]
    return "pooler" if path[1] == "pooler" else "encoder"


def same_values(one: Stored, other: Stored) -> bool:
    """Whether two tensors are equal to the bit."""
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def _check(stored, tensors, config, strict, report):
    names = {tensor.name for tensor in tensors}
    if missing := [tensor.name for tensor in tensors if tensor.name not in stored]:
        raise UserError(f"{_some(missing)} missing")
    if unknown := [name for name in stored if name not in names]:
        if strict:
            raise UserError(f"{_some(unknown)} unknown: --no-strict leaves such tensors out")
        report(f"left out: {', '.join(unknown)} (unknown)")
    for tensor in tensors:
        shape, dtype, _ = stored[tensor.name]
        if shape != tensor.shape:
            raise UserError(f"{tensor.name} has shape {shape}; the config asks for {tensor.shape}")
        if dtype not in FLOATS:
            raise UserError(f"{tensor.name} holds {dtype}; only {', '.join(FLOATS)} can be read")
    for dtype, count in Counter(stored[name].dtype for name in names).items():
        if dtype != "float32":
            report(f"read into float32: {count} tensors stored as {dtype}")


def _some(names: Sequence[str]) -> str:
    """The first names, and how many there are."""
    shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    return f"{shown} is" if len(names) == 1 else f"{shown} ({len(names)} tensors) are"


def _tensors(style, config, parts, classes) -> Iterator[Tensor]:
    sizes = _sizes(config, classes)
    for ours, (theirs, leaves) in _modules(config, parts):
        for leaf, axes in leaves.items():
            name, transposed = NAMES[style](ours, theirs, leaf)
            shape = tuple(sizes[axis] for axis in axes)
            shape = shape[::-1] if transposed else shape
            for layer in range(config.num_layers) if "{}" in theirs else (None,):
                yield Tensor(name.format(layer), shape, (*ours.split("/"), leaf), layer, transposed)


def _shapes(config, parts, classes) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Of our parameters by path."""
    sizes = _sizes(config, classes) | {"V": padded_vocab_size(config.vocab_size)}
    return {
        (*ours.split("/"), leaf): (config.num_layers,) * ("{}" in theirs)
        + tuple(sizes[axis] for axis in axes)
        for ours, (theirs, leaves) in _modules(config, parts)
        for leaf, axes in leaves.items()
    }


def _modules(config, parts):
    """Those rows of `MODULES` that the parts have; "encoder" is one of them here."""
    for ours, row in MODULES.items():
        if ours == "bert/embeddings/position" and config.position_embedding != "learned":
            continue
        if part_of(ours.split("/")) in parts:
            yield ours, row


def _sizes(config, classes):
    return {
        "V": config.vocab_size,
        "P": config.max_position_embeddings,
        "T": config.type_vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "C": classes,
        "2": 2,
    }


def _huggingface_name(ours: str, theirs: str, leaf: str) -> tuple[str, bool]:
    """Name of a tensor, and whether it is transposed."""
    return f"{theirs}.{'bias' if leaf == 'bias' else 'weight'}", leaf == "kernel"


def _google_name(ours: str, theirs: str, leaf: str) -> tuple[str, bool]:
    """As `_huggingface_name`, but of a TensorFlow variable in Google's code."""
    module = theirs.replace("layer.{}", "layer_{}").replace(".", "/") + "/"
    if leaf == "embedding":
        return module[:-1], False
    if "/" not in ours:  # heads are no layers of TensorFlow, but variables
        names = {"kernel": "output_weights", "bias": "output_bias"}
        return GOOGLE_HEADS.get(theirs, module) + names[leaf], leaf == "kernel"
    names = {"kernel": "kernel", "scale": "gamma", "bias": "bias"}
    if ours.endswith("norm"):
        names["bias"] = "beta"
    return module + names[leaf], False


NAMES = {"huggingface": _huggingface_name, "google": _google_name}

"""Converts between our parameters and the tensors of other formats, with one table of names.

The table has names only: shapes, stacking and the padding of the vocabulary follow from the model.
Tensors are converted one at a time, so that at most one is in memory besides our parameters.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.interop.portable import Portable
from bert_jax.interop.shapes import parameter_shapes, unpadded_shapes
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.heads import HEADS, PARTS, part_of, parts_of
from bert_jax.model.model import Model, build_model
from bert_jax.model.parameters import Params, is_stacked

Report = Callable[[str], object]
Style = Literal["huggingface", "google"]

LAYER_MODULES = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward/intermediate": "intermediate.dense",
    "feed_forward/output": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
# Our module -> Hugging Face's, with {} for the number of the layer.
MODULES = {
    "bert/embeddings/word": "bert.embeddings.word_embeddings",
    "bert/embeddings/position": "bert.embeddings.position_embeddings",
    "bert/embeddings/token_type": "bert.embeddings.token_type_embeddings",
    "bert/embeddings/norm": "bert.embeddings.LayerNorm",
    **{
        f"bert/encoder/layers/{ours}": f"bert.encoder.layer.{{}}.{theirs}"
        for ours, theirs in LAYER_MODULES.items()
    },
    "bert/pooler": "bert.pooler.dense",
    "masked_lm/dense": "cls.predictions.transform.dense",
    "masked_lm/norm": "cls.predictions.transform.LayerNorm",
    "masked_lm": "cls.predictions",
    "next_sentence": "cls.seq_relationship",
    "sequence_classifier": "classifier",
    "token_classifier": "classifier",
    "answer_span": "qa_outputs",
}
# Google's names follow from these, except for the heads of its run_classifier.py and run_squad.py.
GOOGLE_SCOPES = {"sequence_classifier": "", "answer_span": "cls/squad/"}
GOOGLE_LACKS = ("token_classifier",)
GOOGLE_PARTS = tuple(part for part in PARTS if part not in GOOGLE_LACKS)
# Our leaf -> Hugging Face's.
LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}
LAYER = re.compile(r"encoder[./]layer[._](\d+)[./]")
FLOATS = ("float64", "float32", "float16", "bfloat16")


class Stored(NamedTuple):
    """A tensor in a file of another format.

    Attributes:
      shape: its shape.
      dtype: numpy's name of its dtype.
      read: returns its values.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def first_rows(self, count: int) -> "Stored":
        """The same tensor without its other rows."""
        return Stored((count, *self.shape[1:]), self.dtype, lambda: self.read()[:count])


class Tensor(NamedTuple):
    """A tensor of another format and its place in our parameters.

    Attributes:
      name: its name in that format.
      shape: its shape in that format, without padding.
      path: path of our parameter.
      layer: its index on our leading axis; None if our parameter is not stacked over layers.
      transposed: whether the format has it as [outputs, inputs].
    """

    name: str
    shape: tuple[int, ...]
    path: str
    layer: int | None
    transposed: bool

    @property
    def part(self) -> str:
        """The part of the model that it belongs to; see `part_of`."""
        return part_of(self.path.split("/"))


def read_params(
    stored: Mapping[str, Stored],
    style: Style,
    architecture: Architecture,
    parts: Sequence[str],
    *,
    rows: int,
    strict: bool,
    report: Report,
) -> Params:
    """Our parameters from the tensors of another format.

    Args:
      stored: all tensors of a checkpoint by name.
      style: format whose names they have.
      architecture: architecture of the model; has learned positions.
      parts: those of `bert_jax.model.heads.PARTS` that may be present; no two share a name.
      rows: rows of the stored tables of words, at least the size of the vocabulary.
      strict: raise on tensors that have no place in the model, and on heads of other shapes,
        instead of leaving them out.
      report: called with a line for each thing left out or converted.

    Returns:
      Nested dict of fp32 arrays; rows that pad the vocabulary are 0.

    Raises:
      UserError: tensors are missing, unknown, of wrong shape or type, or not finite.
    """
    layers = 1 + max((int(m[1]) for m in map(LAYER.search, stored) if m), default=-1)
    if layers != architecture.num_layers:
        raise UserError(
            f"the tensors have {layers} layers; the config has {architecture.num_layers}"
        )
    stored = _without_spare_rows(stored, style, architecture, rows, report)
    outputs = _stored_outputs(stored, style, parts)
    model = build_model(architecture, Numerics(), parts=parts, outputs=outputs)
    possible = list(_tensors(style, architecture, model))
    found = {"encoder", *(tensor.part for tensor in possible if tensor.name in stored)}
    if not strict:
        found -= {
            tensor.part
            for tensor in possible
            if tensor.part in HEADS
            and (tensor.name not in stored or stored[tensor.name].shape != tensor.shape)
        }
    tensors = [tensor for tensor in possible if tensor.part in found]
    _check(stored, tensors, strict, report)

    shapes = parameter_shapes(model)
    arrays = {tensor.path: np.zeros(shapes[tensor.path], np.float32) for tensor in tensors}
    for name, _, path, layer, transposed in tensors:
        values = np.asarray(stored[name].read(), np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{name} has values that are not finite numbers")
        values = values.T if transposed else values
        place = arrays[path] if layer is None else arrays[path][layer]
        place[_within(values.shape)] = values
    return unflatten_dict(arrays, sep="/")


def write_tensors(style: Style, model: Portable) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and unpadded tensors of another format, from a model with learned positions."""
    arrays, parts = flatten_dict(model.params, sep="/"), parts_of(model.params)
    structure = build_model(model.architecture, model.numerics, parts=parts, outputs=model.outputs)
    for name, shape, path, layer, transposed in _tensors(style, model.architecture, structure):
        values = arrays[path] if layer is None else arrays[path][layer]
        values = values[_within(shape[::-1] if transposed else shape)]
        yield name, np.ascontiguousarray(values.T if transposed else values)


def same_values(one: Stored, other: Stored) -> bool:
    """Whether two tensors are exactly equal."""
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def _without_spare_rows(
    stored: Mapping[str, Stored],
    style: Style,
    architecture: Architecture,
    rows: int,
    report: Report,
) -> dict[str, Stored]:
    """The tensors without the rows beyond the vocabulary."""
    tokens, found = architecture.vocab_size, dict(stored)
    for module, leaf in (("bert/embeddings/word", "embedding"), ("masked_lm", "bias")):
        name, _ = NAMES[style](module, leaf, False)
        if rows > tokens and name in stored and stored[name].shape[:1] == (rows,):
            found[name] = stored[name].first_rows(tokens)
            report(
                f"left out: the last {rows - tokens} of {rows} rows of {name}, which stand for "
                f"no token of the vocabulary"
            )
    return found


def _within(shape: Sequence[int]) -> tuple[slice, ...]:
    """The index of an array's first values along each axis."""
    return tuple(map(slice, shape))


def _stored_outputs(stored: Mapping[str, Stored], style: Style, parts: Sequence[str]) -> int:
    """Number of outputs of the head whose size the task sets; 0 without such a head."""
    for part, head in HEADS.items():
        bias, _ = NAMES[style](part, "bias", False)
        if head.has_labels and part in parts and bias in stored:
            return math.prod(stored[bias].shape)
    return 0


def _check(
    stored: Mapping[str, Stored], tensors: Sequence[Tensor], strict: bool, report: Report
) -> None:
    names = {tensor.name for tensor in tensors}
    if missing := [tensor.name for tensor in tensors if tensor.name not in stored]:
        raise UserError(f"{_some(missing)} missing")
    if unknown := [name for name in stored if name not in names]:
        if strict:
            raise UserError(
                f"{_some(unknown)} unknown: `bert-jax convert --no-strict` leaves such tensors out"
            )
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


def _tensors(style: Style, architecture: Architecture, model: Model) -> Iterator[Tensor]:
    """The tensors of all parameters of a model."""
    shapes = unpadded_shapes(model, architecture)
    for path in sorted(model.axes, key=_place):
        module, leaf = path.rsplit("/", 1)
        name, transposed = NAMES[style](module, leaf, f"{module}/scale" in model.axes)
        shape = shapes[path]
        layers: Iterable[int | None] = (None,)
        if is_stacked(model.axes[path]):
            shape, layers = shape[1:], range(shape[0])
        shape = shape[::-1] if transposed else shape
        for layer in layers:
            yield Tensor(name.format(layer), shape, path, layer, transposed)


def _place(path: str) -> tuple[int, int]:
    """The place of a parameter in `MODULES` and `LEAVES`, which order the tensors."""
    module, leaf = path.rsplit("/", 1)
    return list(MODULES).index(module), list(LEAVES).index(leaf)


def _huggingface_name(module: str, leaf: str, is_norm: bool) -> tuple[str, bool]:
    """The name of a tensor, with {} for the layer, and whether it is transposed."""
    del is_norm
    return f"{MODULES[module]}.{LEAVES[leaf]}", leaf == "kernel"


def _google_name(module: str, leaf: str, is_norm: bool) -> tuple[str, bool]:
    """Like `_huggingface_name`, for a TensorFlow variable in Google's code."""
    scope = MODULES[module].replace("layer.{}", "layer_{}").replace(".", "/") + "/"
    if leaf == "embedding":
        return scope.removesuffix("/"), False
    if module in HEADS:  # heads are plain variables, not layers
        names = {"kernel": "output_weights", "bias": "output_bias"}
        return GOOGLE_SCOPES.get(module, scope) + names[leaf], leaf == "kernel"
    names = {"scale": "gamma", "bias": "beta"} if is_norm else {"kernel": "kernel", "bias": "bias"}
    return scope + names[leaf], False


NAMES = {"huggingface": _huggingface_name, "google": _google_name}

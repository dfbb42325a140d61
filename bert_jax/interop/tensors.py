"""Converts between our parameters and the tensors of other formats, with one table of names.

A table has names only: shapes, stacking and the padding of the vocabulary follow from the model.
Tensors are converted one at a time, so that at most one is in memory besides our parameters.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.interop.lineages import Lineage
from bert_jax.interop.portable import Portable, structure_of
from bert_jax.interop.shapes import parameter_shapes, unpadded_shapes
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.heads import HEADS, part_of
from bert_jax.model.int8 import in_float32
from bert_jax.model.model import Model, build_model
from bert_jax.model.parameters import Params, is_stacked

Report = Callable[[str], object]

# Our leaf -> Hugging Face's.
LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}
FLOATS = ("float64", "float32", "float16", "bfloat16")


class Naming(NamedTuple):
    """How a format calls the tensors of a model.

    Attributes:
      modules: our modules in the order of the format's tensors -> their names, with {} for the
        layer.
      tensor: (module's name, our module, our leaf, whether it is a norm) -> name of the tensor, and
        whether the format has it as [outputs, inputs].
    """

    modules: Mapping[str, str]
    tensor: Callable[[str, str, str, bool], tuple[str, bool]]

    def name(self, module: str, leaf: str, is_norm: bool = False) -> tuple[str, bool]:
        """The name of a tensor, with {} for the layer, and whether it is transposed."""
        return self.tensor(self.modules[module], module, leaf, is_norm)

    def count_layers(self, names: Iterable[str]) -> int:
        """The number of layers among the names of a checkpoint's tensors."""
        starts = {
            n.split("{}")[0] for n in (self.name(m, "bias")[0] for m in self.modules) if "{}" in n
        }
        layer = re.compile(f"^({'|'.join(map(re.escape, starts))})(\\d+)[./]")
        return 1 + max((int(m[2]) for m in map(layer.search, names) if m), default=-1)


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


class Piece(NamedTuple):
    """A parameter of ours, or one layer of it, in a tensor of another format.

    Attributes:
      path: path of our parameter.
      layer: its index on our leading axis; None if our parameter is not stacked over layers.
      shape: its shape in that format, without padding.
    """

    path: str
    layer: int | None
    shape: tuple[int, ...]


class Tensor(NamedTuple):
    """A tensor of another format and its places in our parameters.

    Attributes:
      name: its name in that format.
      pieces: what it holds, one after the other along its first axis.
      transposed: whether the format has matrices as [outputs, inputs].
    """

    name: str
    pieces: tuple[Piece, ...]
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in that format."""
        rest = self.pieces[0].shape[1:]
        return (sum(piece.shape[0] for piece in self.pieces), *rest)

    @property
    def part(self) -> str:
        """The part of the model that it belongs to; see `part_of`."""
        return part_of(self.pieces[0].path.split("/"))


def read_params(
    stored: Mapping[str, Stored],
    naming: Naming,
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
      naming: names that they have.
      architecture: architecture of the model.
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
    layers = naming.count_layers(stored)
    if layers != architecture.num_layers:
        raise UserError(
            f"the tensors have {layers} layers; the config has {architecture.num_layers}"
        )
    stored = _without_spare_rows(stored, naming, architecture, rows, report)
    outputs = _stored_outputs(stored, naming, parts)
    model = build_model(architecture, Numerics(), parts=parts, outputs=outputs)
    possible = list(_tensors(naming, architecture, model))
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
    arrays = {
        # What the format lacks is not used, as the scale of the identity before the first layer.
        path: np.ones(shapes[path], np.float32)
        if path.endswith("/scale")
        else np.zeros(shapes[path], np.float32)
        for tensor in tensors
        for path, *_ in tensor.pieces
    }
    for tensor in tensors:
        values = np.asarray(stored[tensor.name].read(), np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{tensor.name} has values that are not finite numbers")
        for path, layer, shape in tensor.pieces:
            piece, values = values[: shape[0]], values[shape[0] :]
            piece = piece.T if tensor.transposed else piece
            place = arrays[path] if layer is None else arrays[path][layer]
            place[_within(piece.shape)] = piece
    return unflatten_dict(arrays, sep="/")


def write_tensors(naming: Naming, model: Portable) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and unpadded tensors of another format."""
    model = model._replace(params=in_float32(model.params))
    arrays, structure = flatten_dict(model.params, sep="/"), structure_of(model)
    for name, pieces, transposed in _tensors(naming, model.architecture, structure):
        found = []
        for path, layer, shape in pieces:
            values = arrays[path] if layer is None else arrays[path][layer]
            values = values[_within(shape[::-1] if transposed else shape)]
            found.append(values.T if transposed else values)
        yield name, np.ascontiguousarray(found[0] if len(found) == 1 else np.concatenate(found))


def same_values(one: Stored, other: Stored) -> bool:
    """Whether two tensors are exactly equal."""
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def _without_spare_rows(
    stored: Mapping[str, Stored],
    naming: Naming,
    architecture: Architecture,
    rows: int,
    report: Report,
) -> dict[str, Stored]:
    """The tensors without the rows beyond the vocabulary."""
    tokens, found = architecture.vocab_size, dict(stored)
    tables = (
        ("bert/embeddings/word", "embedding"),
        ("masked_lm", "bias"),
        ("masked_lm/decoder", "embedding"),
    )
    for module, leaf in tables:
        if module not in naming.modules:
            continue
        name, _ = naming.name(module, leaf)
        if rows > tokens and name in stored and stored[name].shape[:1] == (rows,):
            found[name] = stored[name].first_rows(tokens)
            report(
                f"left out: the last {rows - tokens} of {rows} rows of {name}, which stand for "
                f"no token of the vocabulary{_doubt(rows)}"
            )
    return found


def _doubt(rows: int) -> str:
    """What speaks against spare rows. They come from rounding up, at least to a multiple of 8."""
    if rows % 8 == 0:
        return ""
    return f"; {rows} is no multiple of 8: is the end of the vocabulary missing?"


def _within(shape: Sequence[int]) -> tuple[slice, ...]:
    """The index of an array's first values along each axis."""
    return tuple(map(slice, shape))


def _stored_outputs(stored: Mapping[str, Stored], naming: Naming, parts: Sequence[str]) -> int:
    """Number of outputs of the head whose size the task sets; 0 without such a head."""
    for part, head in HEADS.items():
        if not head.has_labels or part not in parts:
            continue
        bias, _ = naming.name(part, "bias")
        if bias in stored:
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


def _tensors(naming: Naming, architecture: Architecture, model: Model) -> Iterator[Tensor]:
    """The tensors of all parameters of a model."""
    shapes = unpadded_shapes(model, architecture)
    order = list(naming.modules)

    def place(path: str) -> tuple[int, int]:
        module, leaf = path.rsplit("/", 1)
        return order.index(module), list(LEAVES).index(leaf)

    # Parameters of one part that are one tensor there.
    together: dict[tuple[str, bool, str], list[str]] = {}
    for path in sorted(model.axes, key=place):
        module, leaf = path.rsplit("/", 1)
        known = naming.name(module, leaf, f"{module}/scale" in model.axes)
        together.setdefault((*known, part_of(path.split("/"))), []).append(path)
    for (name, transposed, _), paths in together.items():
        layers: Iterable[int | None] = (None,)
        if is_stacked(model.axes[paths[0]]):
            # The norm before the first layer may be the identity.
            is_first = "/attention_norm/" in paths[0] and not architecture.first_norm
            layers = range(int(is_first), shapes[paths[0]][0])
        for layer in layers:
            found = []
            for path in paths:
                shape = shapes[path] if layer is None else shapes[path][1:]
                found.append(Piece(path, layer, shape[::-1] if transposed else shape))
            yield Tensor(name.format(layer), tuple(found), transposed)


def _huggingface_tensor(name: str, module: str, leaf: str, is_norm: bool) -> tuple[str, bool]:
    del module, is_norm
    return f"{name}.{LEAVES[leaf]}", leaf == "kernel"


def huggingface_naming(lineage: Lineage, parts: Sequence[str]) -> Naming:
    """The names of the tensors of a class of transformers that has these parts."""
    modules = dict(lineage.modules)
    if "sequence_classifier" in parts:
        modules |= lineage.classifier
    return Naming(modules, _huggingface_tensor)

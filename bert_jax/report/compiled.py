"""Reads estimated cycles and collectives from the text of a compiled TPU program.

The text is that of `jax.stages.Compiled.as_text()`: optimized, scheduled HLO after partitioning, so
every shape is that of one device. Operations in loops count as often as they run.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"^  (ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
ACROSS_SLICES = " (slices)"  # marks what a host sends through the data-center network
_MOVES = {
    *("bitcast", "concatenate", "constant", "copy", "dynamic-slice", "dynamic-update-slice"),
    *("fusion", "pad", "parameter", "reshape", "slice", "transpose", "tuple"),
}
# Operations of compiled threefry; nothing else in a training step has both.
_THREEFRY = {"shift-right-logical", "xor"}


@dataclasses.dataclass(frozen=True)
class _Operation:
    """One instruction: `%name = shape opcode(rest`, where `rest` has operands and attributes."""

    is_root: bool
    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.partition(")")[0])

    def attribute(self, name: str) -> str:
        """The value of `name=value`, a computation, number or quoted string; "" without it."""
        found = re.search(rf'\b{name}=(?:%?([\w.-]+)|"([^"]*)")', self.rest)
        return (found[1] or found[2]) if found else ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 where it makes none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and type in a step, as one device sees them.

    Attributes:
      kind: one of `COLLECTIVES`, with `ACROSS_SLICES` for the part that leaves the slice.
      dtype: HLO's name of it; for an operation on several arrays, that of most of its bytes.
      count: operations; an asynchronous one counts once.
      bytes: size of the unsharded side: what an all-gather returns, what a reduce-scatter takes;
        across slices, what the device sends.
    """

    kind: str
    dtype: str
    count: int
    bytes: int


def entry_cycles(text: str) -> int:
    """Estimated cycles of a step on one device: the sum over its operations, loops included.

    The compiler estimates its own kernels as if nothing ran beside them. Random bits, sorts, Pallas
    kernels, asynchronous copies and collectives have no estimate and count 0; so does what runs on
    SparseCores.
    """
    return sum(times * operation.cycles for operation, times in _parse(text).executed())


def cycles_by_kind(text: str) -> dict[str, int]:
    """Where the estimated cycles go, largest first; the values sum to `entry_cycles`.

    A fusion counts under the first of these that it contains or is: "matrix products", "random
    bits" (threefry), "gathers and scatters"; outside of the differentiated part of the step
    "optimizer and casts" (floats) or "masking" (integers); "reductions" (LayerNorm, softmax, bias
    gradients), "copies", and "elementwise" for the rest.
    """
    program = _parse(text)
    kinds: collections.Counter[str] = collections.Counter()
    for operation, times in program.executed():
        if cycles := times * operation.cycles:
            kinds[_kind(operation, list(program.fused(operation)))] += cycles
    return dict(kinds.most_common())


def collectives(text: str) -> list[Collective]:
    """The collectives of a step by kind and dtype, most bytes first."""
    program = _parse(text)
    found: dict[tuple[str, str, tuple[tuple[str, int], ...]], int] = {}
    for outer, times in program.executed():
        for operation in program.fused(outer):
            kind, shape = operation.opcode.removesuffix("-done"), operation.shape
            if kind == "reduce-scatter":
                shape = " ".join(program.operations[name].shape for name in operation.operands)
            elif kind == "send":
                transfer = operation.attribute("_xla_megascale_transfer_type")
                kind = f"{transfer.lower().replace('_', '-')}{ACROSS_SLICES}"
                shape = program.operations[operation.operands[0]].shape
            if kind.removesuffix(ACROSS_SLICES) not in COLLECTIVES:
                continue
            # TPUs run a reduce-scatter as a fusion of an all-reduce and a slice.
            is_scatter = outer.attribute("calls").startswith("all-reduce-scatter")
            if is_scatter:
                kind = "reduce-scatter"
            sizes = _bytes_by_dtype(shape)
            # The parts of an asynchronous collective, spread over fusions, share a channel; other
            # collectives with its number differ in kind or size. A collective outside of such
            # fusions is whole, and several equal ones can share a channel: all that the compiler
            # has combined have the first.
            channel = operation.attribute("channel_id") or operation.name
            if is_scatter or outer.opcode != "fusion":
                channel = f"{outer.name} {operation.name}"
            found.setdefault((kind, channel, tuple(sizes.items())), times)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    total: collections.Counter[tuple[str, str]] = collections.Counter()
    for (kind, _, by_dtype), times in found.items():
        dtype = max(by_dtype, key=lambda item: item[1])[0]
        counts[kind, dtype] += times
        total[kind, dtype] += times * sum(size for _, size in by_dtype)
    return [Collective(*key, counts[key], size) for key, size in total.most_common()]


@dataclasses.dataclass(frozen=True)
class _Program:
    """Operations by computation and by name (no two share one), and the entry computation."""

    computations: dict[str, list[_Operation]]
    operations: dict[str, _Operation]
    entry: str

    def executed(self) -> Iterator[tuple[_Operation, int]]:
        """Every scheduled operation with the number of times that a step runs it."""

        def walk(computation: str, times: int) -> Iterator[tuple[_Operation, int]]:
            for operation in self.computations[computation]:
                yield operation, times
                if operation.opcode == "while":
                    yield from walk(operation.attribute("body"), times * self._trips(operation))
                elif operation.opcode == "call":
                    yield from walk(operation.attribute("to_apply"), times)

        return walk(self.entry, 1)

    def fused(self, operation: _Operation) -> Iterator[_Operation]:
        """The operation, and what it calls as a fusion or, on a SparseCore, beside others."""
        yield operation
        called = "to_apply" if operation.opcode == "call-start" else "calls"
        for inner in self.computations.get(operation.attribute(called), ()):
            yield from self.fused(inner)

    def _trips(self, loop: _Operation) -> int:
        """Iterations of a scan, which counts from 0; 1 for a loop of another form.

        The counter is an element of the loop's tuple: the condition compares it with the limit, the
        body adds a constant to it, more than 1 where the compiler has unrolled.
        """
        condition = self._root(loop.attribute("condition"))
        if condition.opcode != "compare" or condition.attribute("direction") != "LT":
            return 1
        counter, limit = (self.operations[name] for name in condition.operands)
        if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
            return 1
        body = self._root(loop.attribute("body"))
        update = self.operations[body.operands[int(counter.attribute("index"))]]
        increments = [self.operations[name] for name in update.operands]
        values = [_integer(operation) for operation in increments if operation.opcode == "constant"]
        step = values[0] if update.opcode == "add" and values else 1
        return -(-_integer(limit) // step)

    def _root(self, computation: str) -> _Operation:
        return next(operation for operation in self.computations[computation] if operation.is_root)


def _integer(constant: _Operation) -> int:
    return int(constant.rest.partition(")")[0])


@functools.lru_cache(maxsize=2)
def _parse(text: str) -> _Program:
    computations: dict[str, list[_Operation]] = {}
    operations: dict[str, _Operation] = {}
    entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            body = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif found := _OPERATION.match(line):
            operation = _Operation(bool(found[1]), *found.groups()[1:])
            operations[operation.name] = operation
            body.append(operation)
    return _Program(computations, operations, entry)


def _kind(operation: _Operation, inside: list[_Operation]) -> str:
    opcodes = {inner.opcode for inner in inside}
    if opcodes & {"convolution", "dot"}:
        return "matrix products"
    if opcodes >= _THREEFRY:
        return "random bits"
    if opcodes & {"gather", "scatter"}:
        return "gathers and scatters"
    scope = operation.attribute("op_name")
    if scope and "jvp(" not in scope:
        is_float = any("f" in dtype for dtype in _bytes_by_dtype(operation.shape))
        return "optimizer and casts" if is_float else "masking"
    if "reduce" in opcodes:
        return "reductions"
    return "copies" if opcodes <= _MOVES else "elementwise"


def _bytes_by_dtype(shape: str) -> collections.Counter[str]:
    """Bytes of the arrays in a shape or tuple of shapes; tiles' padding does not count."""
    sizes: collections.Counter[str] = collections.Counter()
    for dtype, dimensions in _ARRAY.findall(shape):
        bits = int(found[0]) if (found := re.search(r"\d+", dtype)) else 8  # pred
        elements = math.prod(int(dimension) for dimension in dimensions.split(",") if dimension)
        sizes[dtype] += bits * elements // 8
    return sizes

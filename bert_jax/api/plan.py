"""Compiles a training step for TPUs without having any, and reads its memory and cost."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.batches import batch_shapes
from bert_jax.errors import UserError
from bert_jax.fields import fields_of
from bert_jax.interop.formats import read_architecture
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.model import build_model
from bert_jax.model.teacher import TEACHER
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import check_divides, layout_of, row_devices
from bert_jax.parallel.topologies import topology_devices
from bert_jax.pretraining.stages import (
    check_devices,
    flops_per_row,
    learning_rate,
    stage_model,
    trained_parts,
)
from bert_jax.report import compiled
from bert_jax.report.plans import Plan, Program
from bert_jax.storage import whole_file
from bert_jax.terminal import say_progress
from bert_jax.train import program
from bert_jax.train.state import num_params

SEARCH_STEP = 8  # rows; fewer leave parts of the vector registers empty
# The compiler has two messages: for programs far too large and for those slightly too large.
OUT_OF_MEMORY = re.compile(
    r"\(([\d.]+[KMGT])\) exceeds available HBM"
    r"|of ([\d.]+[KMGT]) hbm. Exceeded hbm capacity by ([\d.]+[KMGT])"
)


def plan(config: PretrainConfig, topology: str, num_slices: int = 1) -> Plan:
    """Compiles the step that `pretrain` would run and reads the result.

    The compiler's result is cached in ~/.cache/bert_jax/plans (or under XDG_CACHE_HOME); the same
    step for the same devices is not compiled again.

    Args:
      config: configuration without phases, such as that of a stage.
      topology: topology of one slice, for example "v5e:2x4"; see `topologies.SHAPES`.
      num_slices: number of slices.

    Raises:
      UserError: no such topology, or config and devices do not fit together.
    """
    devices = topology_devices(topology, num_slices)
    mesh = config.mesh.mesh(devices)
    step = planned_step(config, mesh)
    lowered = step.lower(abstract_batch(config, mesh), config.seed)
    result = _compile(lowered, mesh, step.compiler_options, f"{num_slices} x {topology}")

    found = None
    if text := result.pop("text", ""):
        found = Program(
            **{name: value for name, value in result.items() if name != "peak_bytes"},
            cycles=compiled.entry_cycles(text),
            cycles_by_kind=compiled.cycles_by_kind(text),
            collectives=compiled.collectives(text),
        )
    return Plan(
        topology=topology,
        num_slices=num_slices,
        device_kind=devices[0].device_kind,
        num_devices=len(devices),
        num_hosts=len({device.process_index for device in devices}),
        mesh=layout_of(mesh),
        zero1=config.mesh.zero1,
        rng=config.rng,
        remat=config.numerics.remat,
        scan_layers=config.numerics.scan_layers,
        batch_size=config.data.batch_size,
        max_seq_length=config.data.max_seq_length,
        rows_per_device=config.data.batch_size // _rows_unit(config, mesh),
        num_params=num_params(step.abstract_state.params),
        state_bytes=_bytes_on_device(step.abstract_state),
        flops=config.data.batch_size * flops_per_row(config, planned_teacher(config)),
        compiler_options=step.compiler_options,
        peak_bytes=result["peak_bytes"],
        program=found,
    )


def planned_step(config: PretrainConfig, mesh: Mesh) -> program.Program:
    """The program that `pretrain` would run on a mesh, without a store.

    Raises:
      UserError: config and devices do not fit together.
    """
    check_devices(config, mesh)
    teacher, frozen = planned_teacher(config), {}
    if teacher:
        check_divides(mesh, teacher, "the teacher's ")
    model = stage_model(config, mesh, trained_parts(config), teacher)
    if teacher:
        whole = build_model(teacher, config.numerics, parts=config.objective.teacher_parts)
        frozen = {TEACHER: jax.eval_shape(whole.init, jax.random.key(0))}
        zero1 = config.mesh.zero1
        shardings = rules.state_shardings(mesh, frozen, model.axes, zero1=zero1)
        frozen = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), frozen, shardings
        )
    masking = config.bound_masking(_Vocabulary(config.model.vocab_size))
    objective = config.objective.bind(model.graphdef, masking, config.seed)
    untimed = dataclasses.replace(config, budget_hours=0.0)  # a budget's rate needs the clock
    optimizer = config.optimizer.transformation(model.axes)
    return program.Program(
        config,
        objective,
        model,
        optimizer,
        learning_rate(untimed),
        mesh,
        adaptive=config.adaptive,
        vocab_size=config.model.vocab_size,
        frozen=frozen,
    )


def planned_teacher(config: PretrainConfig) -> Architecture | None:
    """The architecture of the teacher of a run; None if it has none."""
    path = config.objective.teacher
    return read_architecture(path) if path else None


def abstract_batch(config: PretrainConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a global training batch."""
    sharding = rules.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        for name, shape in batch_shapes(config.data).items()
    }


def search(config: PretrainConfig, topology: str, num_slices: int = 1) -> Iterator[Plan]:
    """Yields plans that fit, among them that of the largest batch for each remat policy.

    The batch grows fourfold until it does not fit. Memory is nearly linear in the rows of a device,
    so each further compile tries an interpolated size. The search ends at a batch that fits if one
    with `SEARCH_STEP`, or a sixteenth, more rows a device does not.

    Raises:
      UserError: as `plan`, or no policy fits `SEARCH_STEP` rows a device.
    """
    devices = topology_devices(topology, num_slices)
    mesh = config.mesh.mesh(devices)
    fitted = False
    for remat in fields_of(Numerics)["remat"].metadata["choices"]:
        tried: dict[int, Plan] = {}
        rows = SEARCH_STEP
        while rows not in tried:
            trial = dataclasses.replace(
                config,
                numerics=dataclasses.replace(config.numerics, remat=remat),
                data=dataclasses.replace(config.data, batch_size=rows * _rows_unit(config, mesh)),
            )
            tried[rows] = found = plan(trial, topology, num_slices)
            speed = f"{found.tokens_per_second:,.0f} tokens/s by estimate" if found.fits else ""
            say_progress(
                f"remat={remat:<5}{rows:>6} rows a device: {found.peak_bytes / 2**30:8.2f} GiB, "
                f"{'fits    ' if found.fits else 'too much'} {speed}"
            )
            if found.fits:
                fitted = True
                yield found
            rows = _next_rows(tried)
    if not fitted:
        raise UserError(
            f"not even {SEARCH_STEP} rows a device fit into {topology}: use a larger "
            f"config.mesh.fsdp or config.mesh.tensor, or config.mesh.zero1=True"
        )


def plan_stages(
    config: PretrainConfig, topology: str, num_slices: int = 1, *, largest_batch: bool = False
) -> Iterator[tuple[str, Plan]]:
    """Yields the name and the plan of each stage of a config; the name is "" without phases.

    Args:
      config: configuration with or without phases.
      topology, num_slices: as for `plan`.
      largest_batch: `search`, and take the plan with the most estimated tokens a second.

    Raises:
      UserError: as `plan` and `search`; names the stage.
    """
    for stage in config.stages():
        with stage.errors():
            if largest_batch:
                found = list(search(stage.config, topology, num_slices))
                # Those that fit have an estimate.
                chosen = max(found, key=lambda plan: plan.tokens_per_second or 0.0)
            else:
                chosen = plan(stage.config, topology, num_slices)
        yield stage.name, chosen


def _next_rows(tried: dict[int, Plan]) -> int:
    """The next number of rows to try; one that was already tried ends the search."""
    fitting = max((rows for rows, plan in tried.items() if plan.fits), default=0)
    failing = min((rows for rows, plan in tried.items() if not plan.fits), default=0)
    if not failing:
        return 4 * fitting
    step = _search_step(fitting)
    if failing - fitting <= step:
        return failing
    low, high = tried[fitting], tried[failing]
    share = (low.chip.hbm_bytes - low.peak_bytes) / (high.peak_bytes - low.peak_bytes)
    # Every third guess is the middle: where memory is not linear, interpolation converges slowly.
    guess = fitting + (share if len(tried) % 3 else 0.5) * (failing - fitting)
    guess = round(guess) // SEARCH_STEP * SEARCH_STEP
    return min(max(guess, fitting + step), failing - SEARCH_STEP)


def _search_step(rows: int) -> int:
    """Precision in rows: a sixteenth, at least 8, since compiles close to the limit take long."""
    return max(SEARCH_STEP, rows // 16 // SEARCH_STEP * SEARCH_STEP)


def _compile(
    lowered: jax.stages.Lowered, mesh: Mesh, options: dict[str, Any], name: str
) -> dict[str, Any]:
    """Sizes in bytes, FLOPs and text of the program; only "peak_bytes" if it exceeds the memory.

    The result is cached under everything that it depends on.
    """
    versions = [importlib.metadata.version(package) for package in ("jax", "jaxlib", "libtpu")]
    environment = [os.environ.get(variable, "") for variable in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    devices = [str(device) for device in mesh.devices.flat]
    key = json.dumps([name, devices, sorted(options.items()), versions, environment])
    digest = hashlib.sha256((key + lowered.as_text()).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert_jax" / "plans"
    path = cache / f"{digest[:32]}.json.gz"
    if path.exists():
        return json.loads(gzip.decompress(path.read_bytes()))

    say_progress(f"compiling for {name} ...")
    start = time.monotonic()
    result: dict[str, Any]
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not (found := OUT_OF_MEMORY.search(str(error))):
            raise
        needed, capacity, excess = found.groups()
        result = {"peak_bytes": _bytes(needed) if needed else _bytes(capacity) + _bytes(excess)}
    else:
        memory, costs, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
        assert memory is not None  # the TPU compiler reports all three
        assert costs is not None
        assert text is not None
        result = {
            "argument_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
            "alias_bytes": memory.alias_size_in_bytes,
            "peak_bytes": memory.peak_memory_in_bytes,
            "compiler_flops": costs["flops"],
            "text": text,
        }
    say_progress(f"compiled in {time.monotonic() - start:.0f} s")
    cache.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(gzip.compress(json.dumps(result).encode(), compresslevel=6))
    return result


class _Vocabulary:
    """A vocabulary of the right size; its pieces make no difference to the program."""

    def __init__(self, size: int):
        self.vocab = [""] * size
        self.mask_id = 4
        self.special_ids = np.arange(5)
        self.is_continuation = np.arange(size) % 4 == 0


def _rows_unit(config: PretrainConfig, mesh: Mesh) -> int:
    """Rows of a global batch with one row per device and microbatch."""
    return row_devices(mesh) * config.optimizer.gradient_accumulation


def _bytes(text: str) -> int:
    """Parses a size such as "15.75G"."""
    return int(float(text[:-1]) * 2 ** (10 * "KMGT".index(text[-1]) + 10))


def _bytes_on_device(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )

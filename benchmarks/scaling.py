"""Prints the tables of docs/scaling.md: steps compiled for TPU slices that need not exist.

    python benchmarks/scaling.py base [PEER.json ...] | flash | kernel | weak | large | limits

The tables are Markdown. Nothing is run: cycles are the compiler's estimates, without random bits
and waiting for other devices. A PEER.json is the output of scaling_peer.py. A compile takes from
one minute (scanned layers) to seven (unrolled) on two cores; the planner caches its result.
"""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.api.plan import plan, planned_step
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import load_config
from bert_jax.model.attention import Attend
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import choose_attention
from bert_jax.parallel.topologies import topology_devices
from bert_jax.pretraining.stages import flops_per_row
from bert_jax.report.compiled import ACROSS_SLICES
from bert_jax.report.flops import CHIPS, GIB

RECIPE = Path(__file__).parents[1] / "configs" / "bert.py"
TOPOLOGY = "v5e:2x4"
LAYOUTS = {
    "replicated": {"mesh.zero1": False},
    "ZeRO-1": {"mesh.zero1": True},
    "FSDP": {"mesh.data": 1, "mesh.fsdp": 8},
}


def recipe(size: str, **fields: Any) -> PretrainConfig:
    """`configs/bert.py:size`, unpacked, with `rbg` and with fields such as "data.batch_size"."""
    values = {"rng": "rbg", "data.packing": False} | fields
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    return load_config(PretrainConfig, [f"--config={RECIPE}:{size}", *flags])


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print("|", " | ".join(map(str, row)), "|", flush=True)
    print()


def label(topology: str, count: int) -> str:
    return f"{count} x {topology}" if count > 1 else topology


def base(*peers: str) -> None:
    """BERT-base on eight chips: cycles, memory, and where the cycles go."""
    steps = {}
    for layout, rows, length, scan, remat in (
        ("ZeRO-1", 32, 128, False, "none"),
        ("ZeRO-1", 8, 512, False, "none"),
        ("ZeRO-1", 32, 128, True, "none"),
        ("ZeRO-1", 32, 128, True, "dots"),
        ("replicated", 32, 128, True, "none"),
    ):
        fields = {
            "data.batch_size": 8 * rows,
            "data.max_seq_length": length,
            "numerics.scan_layers": scan,
            "numerics.remat": remat,
        }
        compiled_step = plan(recipe("base", **LAYOUTS[layout], **fields), TOPOLOGY)
        program = compiled_step.program
        loop = f", scanned, remat {remat}" if scan else ""
        steps[f"{layout}, {rows} x {length}{loop}"] = {
            "cycles": program.cycles,
            "cycles_by_kind": program.cycles_by_kind,
            "argument_bytes": program.argument_bytes,
            "peak_bytes": compiled_step.peak_bytes,
        }
    for path in map(Path, peers):
        steps[path.stem] = json.loads(path.read_text())

    print_table(
        ("step", "M cycles", "peak MB", "arguments MB"),
        (
            (
                name,
                f"{step['cycles'] / 1e6:.2f}",
                f"{step['peak_bytes'] / 1e6:,.0f}",
                f"{step['argument_bytes'] / 1e6:,.0f}",
            )
            for name, step in steps.items()
        ),
    )
    kinds = dict.fromkeys(kind for step in steps.values() for kind in step["cycles_by_kind"])
    print_table(
        ("M cycles", *steps),
        (
            (
                kind,
                *(f"{step['cycles_by_kind'].get(kind, 0) / 1e6:.2f}" for step in steps.values()),
            )
            for kind in kinds
        ),
    )


def flash() -> None:
    """BERT-base, 8 x 512 on eight chips: attention by XLA and by the kernel with dropout."""
    rows = []
    for scan, remat in ((True, "dots"), (False, "none")):
        for kind in ("auto", "flash"):
            fields = {
                "data.batch_size": 8 * 8,
                "data.max_seq_length": 512,
                "numerics.scan_layers": scan,
                "numerics.remat": remat,
                "numerics.attention": kind,
            }
            found = plan(recipe("base", **LAYOUTS["ZeRO-1"], **fields), TOPOLOGY)
            rows.append(
                (
                    "scanned" if scan else "unrolled",
                    *(remat, kind),
                    f"{found.program.temporary_bytes / 1e6:,.0f}",
                    f"{found.peak_bytes / 1e6:,.0f}",
                    f"{found.program.cycles / 1e6:.2f}",
                )
            )
    print_table(
        ("layers", "remat", "attention", "temporaries MB", "peak MB", "M cycles, kernel left out"),
        rows,
    )


def kernel() -> None:
    """The kernel with dropout and its gradients, on 8,192 tokens of BERT-base on one chip."""
    rows = []
    for length in (128, 512, 2048, 8192):
        for topology in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
            mesh = make_mesh(devices=topology_devices(topology)[:1])
            attend = choose_attention("flash", mesh)

            def loss(*arrays: jax.Array, attend: Attend = attend) -> jax.Array:
                result = attend(*arrays, dropout_rate=0.1, dropout_key=jax.random.key(0))
                return jnp.sum(result.astype(jnp.float32))

            sharding = rules.batch_sharding(mesh)
            ids = jax.ShapeDtypeStruct((8192 // length, length), jnp.int32, sharding=sharding)
            shape = (*ids.shape, 12, 64)
            tokens = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
            step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            compiled_step = step.lower(tokens, tokens, tokens, ids).compile()
            costs, memory = compiled_step.cost_analysis(), compiled_step.memory_analysis()
            rows.append(
                (
                    *(f"{length:,}", topology.partition(":")[0]),
                    f"{costs['flops'] / 1e9:.1f}",
                    f"{costs['bytes accessed'] / 1e6:,.0f}",
                    f"{memory.temp_size_in_bytes / 1e6:,.1f}",
                )
            )
    print_table(("length", "chip", "GFLOP", "MB moved", "temporaries MB"), rows)


def weak() -> None:
    """BERT-base, 32 x 128 tokens per chip, layers scanned (remat dots), on 8 to 256 chips."""
    rows = []
    for topology, slices, chips in (
        ("v5e:2x4", 1, 8),
        ("v5e:4x8", 1, 32),
        ("v5e:8x16", 1, 128),
        ("v5e:16x16", 1, 256),
        ("v5e:4x8", 2, 64),
    ):
        program = plan(recipe("base", **{"data.batch_size": 32 * chips}), topology, slices).program
        sizes = {
            kind: sum(c.bytes for c in program.collectives if c.kind == kind) / 1e6
            for kind in ("all-gather", "reduce-scatter", "all-reduce")
        }
        across = sum(c.bytes for c in program.collectives if c.kind.endswith(ACROSS_SLICES)) / 1e6
        rows.append(
            (
                label(topology, slices),
                chips,
                f"{program.cycles / 1e6:.2f}",
                f"{program.argument_bytes / 1e6:.0f}",
                *(f"{size:,.1f}" for size in sizes.values()),
                f"{across:,.1f}",
                sum(c.count for c in program.collectives),
            )
        )
    print_table(
        (
            *("slice", "chips", "M cycles", "arguments MB", "all-gather MB", "reduce-scatter MB"),
            *("all-reduce MB", "across slices MB", "collectives"),
        ),
        rows,
    )


# Slice, layout, rematerialisation, and the most rows per chip that fit, in multiples of 8.
LARGE = (
    ("v4:2x2x2", "ZeRO-1", "none", 16),
    ("v4:2x2x2", "replicated", "none", 16),
    ("v4:2x2x2", "FSDP", "none", 16),
    ("v5e:2x4", "ZeRO-1", "none", 8),
    ("v5e:2x4", "FSDP", "none", 8),
    ("v5e:2x4", "replicated", "none", 8),  # does not fit
    ("v5e:2x4", "ZeRO-1", "dots", 48),
    ("v5p:2x2x2", "ZeRO-1", "none", 56),
    ("v6e:2x4", "ZeRO-1", "none", 16),
)


def large() -> None:
    """BERT-large, rows of 512 tokens, layers scanned: memory and estimated MFU."""
    rows = []
    for topology, layout, remat, count in LARGE:
        fields = {
            "data.max_seq_length": 512,
            "data.batch_size": 8 * count,
            "numerics.remat": remat,
        }
        found = plan(recipe("large", **LAYOUTS[layout], **fields), topology)
        rows.append(
            (
                *(topology, layout, remat, count),
                f"{found.state_bytes / GIB:.2f}",
                f"{found.peak_bytes / GIB:.2f}",
                f"{(found.chip.hbm_bytes - found.peak_bytes) / GIB:.2f}",
                f"{found.mfu:.1%}" if found.fits else "",
            )
        )
    print_table(
        (
            *("slice", "layout", "remat", "rows a chip", "state GiB", "peak GiB", "left GiB"),
            "estimated MFU",
        ),
        rows,
    )


# Published bytes/s of a chip: all its links at once in one direction, HBM, data-center network.
# https://cloud.google.com/tpu/docs/v5e, /v5p and /v6e; a pod's figures divided by its 256 chips.
RATES = {
    "v5e": (200e9, 819e9, 25e9 / 8),
    "v5p": (600e9, 2765e9, 50e9 / 8),
    "v6e": (400e9, 1638e9, 100e9 / 8),
}
HOP_SECONDS = 1e-6  # assumed; of the right order of magnitude
ADAMW_BYTES = 28  # reads parameter, gradient and two moments, writes three of them, in fp32


def limits() -> None:
    """BERT-large, 65,536 rows of 128 tokens on 4,096 chips: calculated time of each part."""
    rows = []
    for topology, slices in (("v5p:16x16x16", 1), ("v5e:16x16", 16), ("v6e:16x16", 16)):
        config = recipe("large", **{"data.batch_size": 65_536})
        mesh = make_mesh(devices=topology_devices(topology, slices))
        chip = CHIPS[mesh.devices.flat[0].device_kind]
        state = planned_step(config, mesh).abstract_state
        params = jax.tree.leaves(state.params)
        total = sum(math.prod(leaf.shape) for leaf in params)
        stored = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in params)
        rows_a_chip = config.data.batch_size // mesh.size
        generation, _, shape = topology.partition(":")
        links, hbm, network = RATES[generation]
        # bf16 gradients are scattered and bf16 parameters gathered.
        ici = 2 * 2 * total / links
        # Then each chip has its share of the slice's sum, to be summed over slices and gathered.
        dcn = 2 * 2 * total / (mesh.size // slices) * (slices - 1) / slices / network
        hops = sum(int(size) // 2 for size in shape.split("x"))
        compute = rows_a_chip * flops_per_row(config) / (0.5 * chip.peak_flops)
        rows.append(
            (
                label(topology, slices),
                rows_a_chip,
                f"{1e3 * compute:.1f}",
                f"{1e3 * ici:.1f}",
                f"{ici / compute * rows_a_chip * config.data.max_seq_length:.0f}",
                f"{1e3 * dcn:.1f}",
                f"{1e3 * ADAMW_BYTES * stored / hbm:.1f} ({stored / total:.0%})",
                f"{1e6 * hops * HOP_SECONDS:.0f}",
                f"{config.data.batch_size / compute / (mesh.size / 4):,.0f}",
            )
        )
    print_table(
        (
            *(
                "slices",
                "rows a chip",
                "compute ms",
                "ICI ms",
                "ICI = compute at tokens a chip",
                "DCN ms",
            ),
            *("AdamW ms (share held)", "latency of a collective us", "rows/s a host"),
        ),
        rows,
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    tables = (base, flash, kernel, weak, large, limits)
    {table.__name__: table for table in tables}[sys.argv[1]](*sys.argv[2:])

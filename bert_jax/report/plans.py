"""A plan: the compiler's figures for a training step on TPUs, and estimates from them."""

import dataclasses
from typing import Any

from bert_jax.report.compiled import Collective
from bert_jax.report.flops import CHIPS, GIB, Chip


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step; bytes, FLOPs and cycles are those of one device.

    Attributes:
      argument_bytes: size of state and batch.
      temporary_bytes: size of activations, gradients and other values that live within a step.
      alias_bytes: size of arguments whose memory the results reuse (donation).
      compiler_flops: the compiler's count, in which a scanned layer counts once.
      cycles: estimate; see `bert_jax.report.compiled.entry_cycles` for what it leaves out.
      cycles_by_kind: the estimate by kind of operation.
      collectives: by kind and dtype.
    """

    argument_bytes: int
    temporary_bytes: int
    alias_bytes: int
    compiler_flops: float
    cycles: int
    cycles_by_kind: dict[str, int]
    collectives: list[Collective]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training step compiled for TPU slices that need not exist.

    Attributes:
      topology, num_slices: one slice, such as "v5e:2x4", and the number of slices.
      device_kind, num_devices, num_hosts: JAX's devices and their hosts, all slices together.
      mesh: size of each mesh axis.
      zero1, rng, remat, scan_layers: as in the config.
      batch_size, max_seq_length: rows of the global batch and their tokens.
      rows_per_device: rows of a microbatch on each device.
      num_params: number of parameters of the model.
      state_bytes: size of the training state on one device.
      flops: FLOPs of a step on all devices, by formula; matrix products only.
      compiler_options: options that the step is compiled with.
      peak_bytes: the most memory that a device needs at once.
      program: None if the step does not fit into memory.
    """

    topology: str
    num_slices: int
    device_kind: str
    num_devices: int
    num_hosts: int
    mesh: dict[str, int]
    zero1: bool
    rng: str
    remat: str
    scan_layers: bool
    batch_size: int
    max_seq_length: int
    rows_per_device: int
    num_params: int
    state_bytes: int
    flops: float
    compiler_options: dict[str, Any]
    peak_bytes: int
    program: Program | None

    @property
    def chip(self) -> Chip:
        return CHIPS[self.device_kind]

    @property
    def fits(self) -> bool:
        """Whether the step fits into the memory of a device."""
        return self.program is not None

    @property
    def step_seconds(self) -> float | None:
        """Estimate: the program's cycles at the chip's clock rate."""
        return self._step_seconds(self.program) if self.program else None

    @property
    def mfu(self) -> float | None:
        """Estimate: `flops` in `step_seconds` as a share of the devices' peak."""
        return self._mfu(self.program) if self.program else None

    @property
    def tokens_per_second(self) -> float | None:
        """Estimate: tokens of all devices, padding included."""
        return self._tokens_per_second(self.program) if self.program else None

    def input_rates(self) -> dict[str, float]:
        """Rows per second that each host must deliver, at the estimate and at half the peak."""
        rates = {"at 50 % MFU": self.batch_size / (self.flops / self._peak_flops / 0.5)}
        if self.program:
            seconds = self._step_seconds(self.program)
            rates = {"at the estimated step time": self.batch_size / seconds} | rates
        return {when: rate / self.num_hosts for when, rate in rates.items()}

    @property
    def _peak_flops(self) -> float:
        return self.num_devices * self.chip.peak_flops

    def _step_seconds(self, program: Program) -> float:
        return program.cycles / self.chip.clock

    def _mfu(self, program: Program) -> float:
        return self.flops / self._peak_flops / self._step_seconds(program)

    def _tokens_per_second(self, program: Program) -> float:
        return self.batch_size * self.max_seq_length / self._step_seconds(program)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: every field, and the estimates from them."""
        return dataclasses.asdict(self) | {
            "hbm_bytes": self.chip.hbm_bytes,
            "fits": self.fits,
            "estimated_step_seconds": self.step_seconds,
            "estimated_mfu": self.mfu,
            "estimated_tokens_per_second": self.tokens_per_second,
            "input_rows_per_second_per_host": self.input_rates(),
        }

    def table(self) -> str:
        """The plan as text, one fact per line."""
        layout = ", ".join(f"{axis}={size}" for axis, size in self.mesh.items())
        lines = [
            f"{'topology':<28}{self.num_slices} x {self.topology}: {self.num_devices:,} devices "
            f"({self.device_kind}), {self.num_hosts:,} host(s)",
            f"{'mesh':<28}{layout}{', ZeRO-1' if self.zero1 else ''}",
            f"{'batch':<28}{self.batch_size:,} rows of {self.max_seq_length} tokens, "
            f"{self.rows_per_device} rows per device at once",
            f"{'remat, rng':<28}{self.remat}, {self.rng}",
            f"{'parameters':<28}{self.num_params:,}",
            "",
            *self._memory(),
            "",
            "FLOPs of a step, per device",
            _line("by formula", self.flops / self.num_devices / 1e9, "GFLOP"),
        ]
        if self.program:
            once = " (a scanned layer counts once)" if self.scan_layers else ""
            flops = self.program.compiler_flops / 1e9
            lines += [
                _line("by the compiler", flops, "GFLOP" + once),
                "",
                *self._estimate(self.program),
                "",
                *_collectives(self.program),
            ]
        lines += ["", f"{'input per host':<32}{'rows/s':>10}{'tokens/s':>14}"]
        for when, rate in self.input_rates().items():
            lines.append(f"  {when:<30}{rate:>10,.0f}{rate * self.max_seq_length:>14,.0f}")
        return "\n".join(lines)

    def _memory(self) -> list[str]:
        hbm, peak = self.chip.hbm_bytes / GIB, self.peak_bytes / GIB
        left = f"fits, {hbm - peak:.2f} GiB left" if self.fits else (
            f"DOES NOT FIT, {peak - hbm:.2f} GiB too much"
        )  # fmt: skip
        lines = [
            f"memory per device ({hbm:.2f} GiB for programs)",
            _line("state", self.state_bytes / GIB, "GiB", digits=3),
        ]
        if self.program:
            lines += [
                _line("arguments", self.program.argument_bytes / GIB, "GiB", digits=3),
                _line("temporaries", self.program.temporary_bytes / GIB, "GiB", digits=3),
                _line("donated", self.program.alias_bytes / GIB, "GiB", digits=3),
            ]
        return [*lines, _line("peak", peak, f"GiB: {left}", digits=3)]

    def _estimate(self, program: Program) -> list[str]:
        clock = f"ms at {self.chip.clock / 1e9:.2f} GHz"
        lines = [
            "estimate; nothing was run. It leaves out random bits of rbg, sorts, Pallas kernels,",
            "copies beside computation and waiting for other devices, so a run is slower",
            _line("cycles", program.cycles / 1e6, "M", digits=2),
            _line("step time", 1e3 * self._step_seconds(program), clock, digits=2),
            _line("MFU", 100 * self._mfu(program), "%", digits=1),
            _line("tokens/s, all devices", self._tokens_per_second(program), ""),
            "  of the cycles",
        ]
        for kind, cycles in program.cycles_by_kind.items():
            share = f"M  {100 * cycles / program.cycles:4.1f} %"
            lines.append(_line(f"  {kind}", cycles / 1e6, share, digits=2))
        return lines


def _collectives(program: Program) -> list[str]:
    lines = [f"{'collectives of a step':<28}{'dtype':>6}{'count':>8}{'MB':>12}"]
    for found in program.collectives:
        lines.append(
            f"  {found.kind:<26}{found.dtype:>6}{found.count:>8,}{found.bytes / 1e6:>12,.3f}"
        )
    return lines if program.collectives else ["no collectives"]


def _line(name: str, value: float, unit: str, digits: int = 0) -> str:
    return f"  {name:<26}{value:>16,.{digits}f} {unit}".rstrip()

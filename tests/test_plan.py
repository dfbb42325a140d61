"""What the planner reads out of a compiled step, and what the compiled step must be like."""

import dataclasses
import gzip
import json
import re
from pathlib import Path

import jax
import pytest
from configured import configured

from bert_jax.api import plan as planner
from bert_jax.cli.plan import main
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.report.compiled import Collective, collectives, cycles_by_kind, entry_cycles
from bert_jax.report.plans import Plan, Program

pytestmark = pytest.mark.core

RECIPE = Path(__file__).parents[1] / "configs" / "bert.py"
GIB = 2**30

# Four of six layers' worth of a compiled step, as the compiler writes it: a loop that was unrolled
# twice (it counts by 2 up to 8), an asynchronous all-gather in two parts, two pairs of
# reduce-scatters that are alike.
TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%products (p.0: bf16[64,128]) -> bf16[64,128] {
  %p.0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %convolution = bf16[64,128]{1,0:T(8,128)(2,1)} convolution(%p.0, %p.0), dim_labels=bf_io->bf
}

%gather_part (p.1: bf16[16,128]) -> (bf16[128,128], u32[]) {
  %p.1 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[128,128]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, dimensions={0}
  ROOT %custom.1 = (bf16[128,128]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1)
}

%all-reduce-scatter (p.2: f32[256,64]) -> f32[32,64] {
  %p.2 = f32[256,64]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[256,64]{1,0:T(8,128)} all-reduce(%p.2), channel_id=8, to_apply=%add
  ROOT %slice.1 = f32[32,64]{1,0:T(8,128)} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={32,64}
}

%offloaded (p.6: f32[256,64], p.7: f32[64,64]) -> (f32[32,64], f32[8,64]) {
  %p.6 = f32[256,64]{1,0:T(8,128)} parameter(0)
  %p.7 = f32[64,64]{1,0:T(8,128)} parameter(1)
  ROOT %reduce-scatter.1 = (f32[32,64]{1,0:T(8,128)}, f32[8,64]{1,0:T(8,128)}) \
reduce-scatter(%p.6, %p.7), channel_id=1, dimensions={0}, to_apply=%add
}

%condition (p.3: (s32[], f32[])) -> pred[] {
  %p.3 = (s32[]{:T(128)}, /*index=1*/f32[]{:T(128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(8)
  %counter = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body (p.4: (s32[], f32[])) -> (s32[], f32[]) {
  %p.4 = (s32[]{:T(128)}, f32[]{:T(128)}) parameter(0)
  %old = s32[]{:T(128)} get-tuple-element(%p.4), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%old, %two)
  %value = f32[]{:T(128)} get-tuple-element(%p.4), index=1
  ROOT %pair = (s32[]{:T(128)}, f32[]{:T(128)}) tuple(%next, %all-reduce.2)
  %fusion.1 = bf16[64,128]{1,0} fusion(%value), kind=kOutput, calls=%products, \
metadata={op_name="jit(step)/jvp()/dot_general"}, backend_config={"estimated_cycles":"1000"}
  %all-reduce.2 = f32[]{:T(128)} all-reduce(%value), channel_id=9, to_apply=%add
}

ENTRY %main (p.5: f32[]) -> f32[] {
  %p.5 = f32[]{:T(128)} parameter(0)
  %start = (bf16[128,128]{1,0}, u32[]{:S(2)}) fusion(%p.5), kind=kCustom, calls=%gather_part
  %part = (bf16[128,128]{1,0}, u32[]{:S(2)}) fusion(%start), kind=kCustom, calls=%gather_part
  %scattered = f32[32,64]{1,0:T(8,128)} fusion(%p.5), kind=kCustom, calls=%all-reduce-scatter
  %alike = f32[32,64]{1,0:T(8,128)} fusion(%start), kind=kCustom, calls=%all-reduce-scatter
  %sparse-start.1 = ((f32[256,64], f32[64,64]), (f32[32,64], f32[8,64]), u32[]) \
call-start(%p.5, %p.5), to_apply=%offloaded
  %sparse-start.2 = ((f32[256,64], f32[64,64]), (f32[32,64], f32[8,64]), u32[]) \
call-start(%p.5, %p.5), to_apply=%offloaded
  %loop = (s32[]{:T(128)}, f32[]{:T(128)}) while(%p.5), condition=%condition, body=%body
  %update = f32[8,128]{1,0} add(%p.5, %p.5), metadata={op_name="jit(step)/add"}, \
backend_config={"estimated_cycles":"500"}
  %p-start = (u8[96]{0}, u8[96]{0}, u32[]{:S(2)}) collective-permute-start(%p.5), channel_id=8
  %p-done = u8[96]{0} collective-permute-done(%p-start)
  %send.1 = (f32[8,128]{1,0}, u32[], token[]) send(%update, %token), channel_id=3, \
frontend_attributes={_xla_megascale_target="{1,2}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent.1 = token[] send-done(%send.1), channel_id=3
  ROOT %copy.1 = f32[]{:T(128)} copy(%p.5), backend_config={"estimated_cycles":"20"}
}
"""


def test_loops_count_as_often_as_they_run():
    assert entry_cycles(TEXT) == 4 * 1000 + 500 + 20
    assert cycles_by_kind(TEXT) == {
        "matrix products": 4000,
        "optimizer and casts": 500,
        "copies": 20,
    }


def test_collectives_count_once_however_they_are_written():
    assert collectives(TEXT) == [
        # Two fusions, and two combined ones on a SparseCore that share a channel.
        Collective("reduce-scatter", "f32", 4, 2 * 256 * 64 * 4 + 2 * (256 + 64) * 64 * 4),
        Collective("all-gather", "bf16", 1, 128 * 128 * 2),
        Collective("all-reduce (slices)", "f32", 1, 8 * 128 * 4),
        Collective("collective-permute", "u8", 1, 96),
        Collective("all-reduce", "f32", 4, 4 * 4),
    ]


def small_config(**changes) -> PretrainConfig:
    """Two scanned layers, 8 rows on each of 8 devices."""
    fields = {
        "rng": "rbg",
        "model.num_layers": 2,
        "model.vocab_size": 8192,
        "numerics.scan_layers": True,
        "data.batch_size": 64,
        "data.packing": False,
    }
    return configured(**fields | changes)


@pytest.fixture(scope="module")
def compiled_steps(tmp_path_factory):
    """Plans on v5e:2x4 and the compiled text of each, replicated and with ZeRO-1."""
    pytest.importorskip("libtpu", reason="the compiler for TPUs is in libtpu")
    steps = {}
    with pytest.MonkeyPatch.context() as patch:
        for zero1 in (False, True):
            cache = tmp_path_factory.mktemp("cache")
            patch.setenv("XDG_CACHE_HOME", str(cache))
            plan = planner.plan(small_config(**{"mesh.zero1": zero1}), "v5e:2x4")
            (answer,) = cache.rglob("*.json.gz")
            steps[zero1] = plan, json.loads(gzip.decompress(answer.read_bytes()))["text"], cache
    return steps


@pytest.mark.parametrize("zero1", [False, True])
def test_no_device_draws_the_random_bits_of_others(compiled_steps, zero1):
    _, text, _ = compiled_steps[zero1]
    drawn = re.findall(r"= [(]?(\w+)\[([\d,]+)\]\S* rng-bit-generator\(", text)
    assert drawn
    rows = {int(shape.split(",")[0]) for dtype, shape in drawn if dtype == "u8"}
    assert rows == {8}


@pytest.mark.parametrize("zero1", [False, True])
def test_the_whole_state_is_donated(compiled_steps, zero1):
    plan, _, _ = compiled_steps[zero1]
    assert plan.program.alias_bytes >= plan.state_bytes


def test_zero1_scatters_gradients_and_splits_the_state(compiled_steps):
    replicated, sharded = compiled_steps[False][0], compiled_steps[True][0]
    assert sharded.state_bytes < 0.2 * replicated.state_bytes
    assert sharded.program.argument_bytes < 0.2 * replicated.program.argument_bytes
    kinds = {found.kind for found in sharded.program.collectives}
    assert {"reduce-scatter", "all-gather"} <= kinds
    assert "reduce-scatter" not in {found.kind for found in replicated.program.collectives}


def test_data_parallel_moves_gradients_only(compiled_steps):
    plan, _, _ = compiled_steps[False]
    moved = {found.kind: found.bytes for found in plan.program.collectives if found.bytes > 1000}
    assert set(moved) == {"all-reduce"}


def test_zero1_gathers_parameters_and_no_activations(compiled_steps):
    plan, _, _ = compiled_steps[True]
    gathered = sum(found.bytes for found in plan.program.collectives if found.kind == "all-gather")
    # In bf16; a layer is gathered in the forward and again in the backward pass.
    assert gathered < 2 * 2 * plan.num_params


@pytest.mark.parametrize("zero1", [False, True])
def test_the_tied_table_is_reduced_once(compiled_steps, zero1):
    _, text, _ = compiled_steps[zero1]
    reduced = re.findall(r" = (.*) (?:all-reduce|reduce-scatter)(?:-done)?\(", text)
    assert sum(shape.count("[8192,128]") for shape in reduced) == 1


def test_a_plan_says_everything(compiled_steps):
    plan, _, _ = compiled_steps[True]
    assert plan.fits
    assert (plan.num_devices, plan.num_hosts, plan.rows_per_device) == (8, 1, 8)
    assert plan.mesh == {"data": 8, "fsdp": 1, "tensor": 1}
    assert 0 < plan.mfu < 1
    assert plan.peak_bytes < 0.1 * plan.chip.hbm_bytes
    # A second layer, and what the formula leaves out.
    assert 0.5 < plan.program.compiler_flops * plan.num_devices / plan.flops < 1.1
    assert sum(plan.program.cycles_by_kind.values()) == plan.program.cycles
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["program"]["collectives"][0]["bytes"] > 0
    assert values["estimated_mfu"] == plan.mfu
    assert values["compiler_options"]["xla_tpu_spmd_rng_bit_generator_unsafe"] is True
    table = plan.table()
    for part in ("1 x v5e:2x4: 8 devices", "ZeRO-1", "reduce-scatter", "estimate", "fits, 15."):
        assert part in table


def test_the_same_plan_is_not_compiled_again(compiled_steps, monkeypatch, capsys):
    plan, _, cache = compiled_steps[True]
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert planner.plan(small_config(**{"mesh.zero1": True}), "v5e:2x4") == plan
    assert "compiling" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "too_much"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (17.50G) exceeds available HBM (15.75G).",
            1.75,
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory in memory space hbm. "
            "Used 16.00G of 15.75G hbm. Exceeded hbm capacity by 256.0M.",
            0.25,
        ),
    ],
)
def test_what_does_not_fit_is_told_by_how_much(message, too_much, monkeypatch, tmp_path, capsys):
    """The compiler refuses such a step with a message."""
    pytest.importorskip("libtpu", reason="the compiler for TPUs is in libtpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(self):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # would outlive the test
    output = tmp_path / "plans.json"
    arguments = [f"--config={RECIPE}:tiny", "--topology=v5e:2x4", f"--output={output}"]
    assert main(arguments) == 1
    assert f"DOES NOT FIT, {too_much:.2f} GiB too much" in capsys.readouterr().out
    (plan,) = json.loads(output.read_text())
    assert not plan["fits"]
    assert plan["peak_bytes"] == (15.75 + too_much) * GIB
    assert plan["program"] is None


def fake_plan(config: PretrainConfig, topology: str, num_slices: int) -> Plan:
    """Memory is flat at first, then nearly a line; what recomputes more needs less of it."""
    rows = config.data.batch_size // 8
    gib_a_row, cycles_a_row = {"none": (0.11, 10), "dots": (0.05, 12), "full": (0.013, 13)}[
        config.numerics.remat
    ]
    peak = max(2, 1 + gib_a_row * rows * (1 + 0.02 * (rows // 16 % 2))) * GIB
    program = Program(0, 0, 0, 0.0, 1000 + rows * cycles_a_row, {}, [])
    return Plan(
        topology=topology,
        num_slices=num_slices,
        device_kind="TPU v5 lite",
        num_devices=8,
        num_hosts=1,
        mesh={"data": 8},
        zero1=False,
        rng=config.rng,
        remat=config.numerics.remat,
        scan_layers=True,
        batch_size=config.data.batch_size,
        max_seq_length=128,
        rows_per_device=rows,
        num_params=1,
        state_bytes=1,
        flops=1e12,
        compiler_options={},
        peak_bytes=int(peak),
        program=program if peak < 15.75 * GIB else None,
    )


def test_search_finds_the_largest_batch_in_few_compiles(monkeypatch):
    pytest.importorskip("libtpu", reason="the compiler for TPUs is in libtpu")
    tried = []

    def record(*arguments):
        tried.append(fake_plan(*arguments))
        return tried[-1]

    monkeypatch.setattr(planner, "plan", record)
    found = list(planner.search(small_config(), "v5e:2x4"))
    assert len(tried) < 25
    for remat in ("none", "dots", "full"):
        largest = max(plan.batch_size for plan in found if plan.remat == remat)
        config = small_config(**{"numerics.remat": remat})

        def at(batch_size, config=config):
            data = dataclasses.replace(config.data, batch_size=batch_size)
            return fake_plan(dataclasses.replace(config, data=data), "", 1)

        assert at(largest).fits
        assert not at(largest + max(64, largest // 16)).fits


def test_search_plans_the_fastest(monkeypatch, capsys):
    pytest.importorskip("libtpu", reason="the compiler for TPUs is in libtpu")
    monkeypatch.setattr(planner, "plan", fake_plan)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # would outlive the test
    assert main([f"--config={RECIPE}:tiny", "--topology=v5e:2x4", "--search"]) == 0
    trials, _, table = capsys.readouterr().out.partition("\nplan\n")
    assert "remat=none      8 rows a device:     2.00 GiB, fits" in trials
    # 1,000 cycles a step are shared by so many rows that what recomputes most is fastest.
    assert re.search(r"remat, rng +full", table)

"""Checkpoints that are damaged, removed while they are read, or hold what is no number."""

import itertools
import json
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.errors import TrainingDiverged, UserError
from bert_jax.parallel.mesh import make_mesh
from bert_jax.train import checkpoints
from bert_jax.train.checkpoints import Checkpoints, DamagedCheckpoint, saved_steps
from bert_jax.train.checksums import summarize
from bert_jax.train.state import TrainState, init_state

pytestmark = pytest.mark.core

PROGRESS = {"unlogged": {"loss": 1.25}, "seconds": 3.5}


def make_state(seed: int) -> TrainState:
    """Split over four of eight devices, and everything but "kernel" on all."""
    mesh = make_mesh(data=2, fsdp=4)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in [(None, "fsdp"), ()])

    def params(key: jax.Array) -> dict:
        kernel = jax.random.normal(key, (16, 8))
        return {"bert": {"pooler": {"kernel": kernel, "bias": kernel[0]}}}

    shapes = jax.eval_shape(lambda key: init_state(params, optax.adam(1e-3), key), KEY)
    shardings = jax.tree.map(lambda x: split if x.ndim == 2 else whole, shapes)
    make = jax.jit(lambda key: init_state(params, optax.adam(1e-3), key), out_shardings=shardings)
    return make(jax.random.key(seed))


KEY = jax.random.key(0)


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with three checkpoints, and what they hold by step."""
    workdir = tmp_path_factory.mktemp("saved")
    states = {step: make_state(step) for step in (5, 10, 15)}
    with Checkpoints(workdir, keep=3) as written:
        for step, state in states.items():
            written.save(step, state, PROGRESS)
    return workdir, states


@pytest.fixture
def copied(saved, tmp_path):
    """A copy to damage, and the newest state."""
    workdir, states = saved
    shutil.copytree(workdir, tmp_path / "run")
    return tmp_path / "run", states[15]


def read(workdir: Path, state: TrainState, step: int | None = None) -> tuple:
    with Checkpoints(workdir, read_only=True) as opened:
        return *opened.restore(abstract(state), step), *opened.read_params(step)


def test_checksums_do_not_depend_on_the_layout():
    values = np.random.default_rng(0)
    arrays = {
        "kernel": values.normal(size=(8, 12, 16)).astype(np.float32),
        "half": values.normal(size=(16, 3)).astype(ml_dtypes.bfloat16),
        "mask": values.random(12) > 0.5,
        "step": np.int32(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    mesh = make_mesh(data=2, fsdp=4)
    expected = summarize(arrays)
    for kernel in [(), ("fsdp",), (None, "fsdp", "data"), (("data", "fsdp"),), (("fsdp", "data"),)]:
        specs = dict.fromkeys(arrays, PartitionSpec()) | {"kernel": PartitionSpec(*kernel)}
        specs["half"] = PartitionSpec(("data", "fsdp"))
        placed = {
            name: jax.device_put(array, NamedSharding(mesh, specs[name]))
            for name, array in arrays.items()
        }
        assert summarize(placed) == expected


def test_every_bit_counts():
    values = np.arange(100_000, dtype=np.float32)
    bits = values.view(np.uint32)
    checksum = summarize({"x": values})["x"].checksum
    assert checksum == 1_170_950_461  # files of other machines have it too
    found = set()
    for place, bit in [(0, 0), (0, 31), (77, 22), (65_535, 3), (65_536, 31), (99_999, 17)]:
        bits[place] ^= np.uint32(1 << bit)
        found.add(summarize({"x": values})["x"].checksum)
        bits[place] ^= np.uint32(1 << bit)
    bits[[3, 9]] ^= np.uint32(1 << 31)
    found.add(summarize({"x": values})["x"].checksum)
    bits[[3, 9]] ^= np.uint32(1 << 31)
    found.add(summarize({"x": values[::-1]})["x"].checksum)
    assert len(found - {checksum}) == 8


def test_what_was_saved_is_read(saved):
    workdir, states = saved
    for step in (None, 5):
        state, progress, params, found = read(workdir, states[5], step)
        jax.tree.map(np.testing.assert_array_equal, state, states[step or 15])
        jax.tree.map(np.testing.assert_array_equal, params, states[step or 15].params)
        assert (progress, found) == (PROGRESS, step or 15)


def test_the_next_step_takes_the_memory_of_a_state_that_is_being_saved(tmp_path):
    """The checksums are those of the state as it was, though it is donated at once."""
    state = make_state(0)
    train = jax.jit(lambda x: jax.tree.map(lambda y: y * 2 + 1, x), donate_argnums=0)
    expected = {}
    with Checkpoints(tmp_path, keep=8) as written:
        for step in range(8):
            expected[step] = jax.device_get(state.params)
            written.save(step, state, PROGRESS)
            state = train(state)
    with Checkpoints(tmp_path, read_only=True) as opened:
        for step, params in expected.items():
            jax.tree.map(np.testing.assert_array_equal, opened.read_params(step)[0], params)


def test_without_its_checksums_a_checkpoint_is_not_there(saved, tmp_path, monkeypatch):
    """They are awaited while the state is written, and the directory gets its name last."""
    _, states = saved
    summed = threading.Event()
    finish = checkpoints.start_summary(states[5])

    def slowly(state):
        return lambda: summed.wait(60) and finish()

    monkeypatch.setattr(checkpoints, "start_summary", slowly)
    with Checkpoints(tmp_path) as written:
        written.save(5, states[5], PROGRESS)
        state = next((tmp_path / "checkpoints").glob("5.*")) / "state"
        while not list(state.parent.glob("state*/_METADATA")):
            time.sleep(0.01)
        assert saved_steps(tmp_path) == []
        summed.set()
        assert written.finished_steps() == [5]


def change(path: Path, chance: random.Random) -> None:
    """Damages a file in one of many ways."""
    content = bytearray(path.read_bytes())
    at, count = chance.randrange(len(content) + 1), chance.randrange(1, 30)
    kind = chance.choice(["flip", "flip", "cut", "remove", "swap", "noise", "insert", "zeros"])
    if kind == "remove":
        path.unlink()
        return
    if kind == "flip":
        content[at % len(content)] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "swap":  # with the file of another checkpoint
        other = next(each for each in path.parents if each.name == "15")
        twins = sorted((other.parent / "10" / path.parent.relative_to(other)).glob("*"))
        content[:] = next((x for x in twins if x.name == path.name), twins[0]).read_bytes()
    elif kind == "noise":
        content[at : at + count] = chance.randbytes(count)
    elif kind == "insert":
        content[at:at] = b"9" * count
    else:
        content[:] = bytes(len(content))
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(6))
def test_damage_is_one_line_or_does_no_harm(seed, copied, tmp_path, capfd):
    """Whatever is read is what was saved."""
    workdir, state = copied
    newest = workdir / "checkpoints" / "15"
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    chance = random.Random(seed)
    for path in chance.sample(files, 5):
        shutil.copytree(newest, tmp_path / "kept")
        change(path, chance)
        message = ""
        try:
            found, progress, params, _ = read(workdir, state, 15)
        except UserError as error:
            message = str(error)
        if message:
            assert "\n" not in message
            assert f"{newest}: damaged: " in message or "no checkpoint of step 15" in message
        else:
            jax.tree.map(np.testing.assert_array_equal, found, state)
            jax.tree.map(np.testing.assert_array_equal, params, state.params)
            assert progress == PROGRESS
        shutil.rmtree(newest, ignore_errors=True)
        (tmp_path / "kept").rename(newest)
    assert "Traceback" not in capfd.readouterr().err


def test_the_array_and_the_whole_checkpoints_are_named(copied):
    workdir, state = copied
    progress = workdir / "checkpoints" / "15" / "progress" / "metadata"
    other = json.loads((workdir / "checkpoints" / "10" / "progress" / "metadata").read_text())
    record = json.loads(progress.read_text())
    name = "opt_state/0/nu/bert/pooler/kernel"
    record["arrays"][name] = [[16, 8], "float32", 1]
    record["crc32"] = checkpoints._crc32({k: v for k, v in record.items() if k != "crc32"})
    progress.write_text(json.dumps(record))
    (workdir / "checkpoints" / "5" / "state" / "_METADATA").unlink()
    with pytest.raises(DamagedCheckpoint) as caught:
        read(workdir, state)
    assert str(caught.value) == (
        f"{workdir}/checkpoints/15: damaged: {name} is not what was saved; whole are the "
        "checkpoints of steps [10]: read another with --step=10"
    )
    assert (caught.value.step, caught.value.whole) == (15, [10])
    with Checkpoints(workdir, read_only=True) as opened:  # the parameters are whole
        jax.tree.map(np.testing.assert_array_equal, opened.read_params()[0], state.params)
    progress.write_text(json.dumps(other))
    with pytest.raises(DamagedCheckpoint, match="is not what was saved"):
        read(workdir, state)
    progress.write_text(progress.read_text().replace("1.25", "1.75"))
    with pytest.raises(DamagedCheckpoint, match="progress is not what was saved"):
        read(workdir, state)
    metadata = progress.parents[1] / "state" / "array_metadatas" / "process_0"
    progress.write_text(metadata.read_text())  # JSON, and without a checksum
    with pytest.raises(DamagedCheckpoint, match="progress is not what was saved"):
        read(workdir, state)


def test_a_checkpoint_without_checksums_is_read(copied):
    """Of an older version."""
    workdir, state = copied
    (workdir / "checkpoints" / "15" / "progress" / "metadata").write_text(json.dumps(PROGRESS))
    found, progress, _, _ = read(workdir, state)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert progress == PROGRESS


def test_another_model_is_no_damage(saved):
    workdir, states = saved
    wider = jax.tree.map(lambda x: jnp.zeros((*x.shape, 2)), states[15])
    with (
        Checkpoints(workdir, read_only=True) as opened,
        pytest.raises(UserError, match=r"cannot be restored into this model: step is \(\), but"),
    ):
        opened.restore(wider)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_neither_saved_nor_read(value, tmp_path, monkeypatch, capfd):
    state = make_state(0)
    state.params["bert"]["pooler"]["bias"] += value
    with Checkpoints(tmp_path) as written:
        written.save(3, state, {})
        with pytest.raises(TrainingDiverged, match=r"params/bert/pooler/bias holds .* step 3: not"):
            written.finished_steps()
        assert written.finished_steps() == []
        with monkeypatch.context() as patch:  # as older versions did
            patch.setattr(checkpoints, "_not_finite", lambda summaries: None)
            written.save(4, state, {})
            assert written.finished_steps() == [4]
    with Checkpoints(tmp_path, read_only=True) as opened:
        for reading in (opened.read_params, lambda: opened.restore(abstract(state))):
            with pytest.raises(UserError, match=r"params/bert/pooler/bias holds .* not finite"):
                reading()
    assert "Traceback" not in capfd.readouterr().err


def test_a_checkpoint_removed_while_it_is_read_gives_way_to_the_next(copied, monkeypatch):
    workdir, state = copied
    directory = workdir / "checkpoints"
    (directory / "15").rename(workdir / "later")
    read_state = checkpoints._read_state

    def rotate(path, *groups):
        if path.name == "10":
            shutil.rmtree(path / "state")
            (workdir / "later").rename(directory / "15")
        return read_state(path, *groups)

    monkeypatch.setattr(checkpoints, "_read_state", rotate)
    with Checkpoints(workdir, read_only=True) as opened:
        params, step = opened.read_params()
    assert step == 15
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_readers_beside_a_run_that_saves(tmp_path):
    """Each of many reads gives the parameters of one step, though only the newest is kept."""
    values = np.arange(1000, dtype=np.float32)
    with Checkpoints(tmp_path) as written:
        written.save(0, {"params": {"w": values}}, {})
    stop = threading.Event()

    def write() -> None:
        with Checkpoints(tmp_path) as written:
            for step in itertools.count(1):
                if stop.is_set():
                    return
                written.save(step, {"params": {"w": values + step}}, {})

    with ThreadPoolExecutor(1) as pool, Checkpoints(tmp_path, read_only=True) as opened:
        writing = pool.submit(write)
        try:
            found = []
            for _ in range(40):
                params, step = opened.read_params()
                np.testing.assert_array_equal(params["w"], values + step)
                found.append(step)
        finally:
            stop.set()
        writing.result()
    assert found == sorted(found)
    assert len(set(found)) > 2


def test_going_back_removes_what_came_later(copied):
    workdir, _ = copied
    with Checkpoints(workdir, keep=3, last=10) as opened:
        assert opened.finished_steps() == [5, 10]
        opened.save(15, make_state(1), PROGRESS)
    assert saved_steps(workdir) == [5, 10, 15]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "15", "5"]


def test_before_the_first_one(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoints; is .* and has its run saved one yet\?"):
        Checkpoints(tmp_path, read_only=True)
    (tmp_path / "checkpoints").mkdir()
    with (
        Checkpoints(tmp_path, read_only=True) as opened,
        pytest.raises(UserError, match="no checkpoint yet; there are none"),
    ):
        opened.read_params()

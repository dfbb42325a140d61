"""Output that cannot be written: one line with the user's path, the exit code, nothing left."""

import contextlib
import math
import re
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from bert_jax.__main__ import main

pytestmark = pytest.mark.core

COMMANDS = {
    "convert older/converted {out}/model --to=bert_jax": "model",
    "convert older/converted {out}/model --to=huggingface": "model",
    "export --model=older/converted --output={out}/export": "export",
    "prepare text.txt --vocab=older/converted --output={out}/store --workers=1": "store",
    "predict features lines.txt --model=older/converted --output={out}/vectors.jsonl": "vectors",
    "predict features lines.txt --model=older/converted --output={out}/vectors.npy": "vectors",
    "evaluate --workdir=older/finetuning --data=older/dev.tsv --predictions={out}/is.tsv": "is",
    "plot older/pretraining --output={out}/curves.png": "curves",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and runs of an older version in `older`, and texts."""
    folder = tmp_path_factory.mktemp("disk")
    with tarfile.open(Path(__file__).parent / "older" / "v0.1.tar.xz") as archive:
        archive.extractall(folder / "older", filter="data")
    lines = [f"The house number {n} stands on the hill.\n" for n in range(20)]
    (folder / "lines.txt").write_text("".join(lines))
    (folder / "text.txt").write_text("\n".join(lines))  # a document each
    return folder


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What is written beyond it fails as on a full disk; JAX writes no programs to its cache."""
    name = "jax_persistent_cache_min_compile_time_secs"
    seconds = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update(name, seconds)


def message_of(command: str, out: Path, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit code and message of a command, without its progress."""
    code = main(command.format(out=out).split())
    written = capsys.readouterr().err.replace("\r", "\n")
    lines = re.sub(r"(?m)^(tokens|vocabulary): .*B/s.*\n", "", written).strip().splitlines()
    assert len(lines) == 1, written
    return code, lines[0]


@pytest.mark.parametrize("size", [0, 100])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(command, size, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    with files_of_at_most(size):
        code, message = message_of(command, tmp_path, capsys)
    name = COMMANDS[command]
    assert re.fullmatch(rf"bert-jax \w+: error: {tmp_path}/{name}[\w./]*: File too large", message)
    assert code == 1
    assert list(tmp_path.iterdir()) == []
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_where_no_one_can_write(command, folder, monkeypatch, capsys):
    """Even root makes no files there."""
    monkeypatch.chdir(folder)
    code, message = message_of(command, Path("/proc"), capsys)
    assert re.match(rf"bert-jax \w+: error: /proc/[\w.]*{COMMANDS[command]}", message)
    assert code == 2

"""Every test process sees 8 devices, so that sharding is real wherever it is asked for.

The tests compile much and compute little: XLA is told to save on optimizing, and what was compiled
once, in this process or another, is not compiled again.
"""

import os
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    # Where other programs take the cores, devices wait for each other longer than the usual 40 s.
    + " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker takes the directory of its parent
    _cache = tempfile.TemporaryDirectory(prefix="bert_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


@pytest.fixture(scope="session")
def sotu_store(tmp_path_factory):
    """Path of a store of the carried corpus with 1,000 WordPieces, made as a user makes it."""
    # Not above: the environment must be set before JAX is imported.
    from bert_jax.cli.prepare import main

    path = tmp_path_factory.mktemp("sotu") / "store"
    main(["corpus:sotu", f"--output={path}", "--vocab-size=1000", "--workers=1"])
    return path


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for references of transformers; without both, the test is skipped."""
    library = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    library.set_num_threads(1)
    return library


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A directory with an encoder of random weights, which reads the words of `words.py`."""
    from etils import epath
    from words import write_encoder

    path = epath.Path(tmp_path_factory.mktemp("model"))
    write_encoder(path)
    return path

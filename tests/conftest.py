"""Every test process sees 8 devices, so that sharding is real wherever it is asked for."""

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)


@pytest.fixture(scope="session")
def sotu_store(tmp_path_factory):
    """Path of a store of the carried corpus with 1,000 WordPieces, made as a user makes it."""
    from bert_jax import prepare  # not above: the environment must be set before JAX is imported

    path = tmp_path_factory.mktemp("sotu") / "store"
    prepare.main(["corpus:sotu", f"--output={path}", "--vocab-size=1000", "--workers=1"])
    return path

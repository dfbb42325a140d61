"""Options for the compiler of a training step."""

from jax.sharding import Mesh


def compiler_options(mesh: Mesh, rng: str) -> dict[str, str | bool]:
    """XLA options for TPUs, for `jax.jit(compiler_options=...)`; none on other platforms.

    Args:
      mesh: mesh that the step runs on.
      rng: `config.rng`.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return {}
    return {
        # Otherwise products with a scattered result become a loop of permutes, which costs copies.
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
        # Otherwise every device draws the random bits of the global batch, except with threefry.
        "xla_tpu_spmd_rng_bit_generator_unsafe": rng == "rbg",
    }

"""Options for the compiler of a training step."""

from jax.sharding import Mesh


def compiler_options(mesh: Mesh, rng: str) -> dict[str, str | bool]:
    """Options of XLA for TPUs, for `jax.jit(compiler_options=...)`; none elsewhere.

    Args:
      mesh: of the step.
      rng: `config.rng`.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return {}
    return {
        # Else a product whose result is scattered is cut into a loop of permutes that costs copies.
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
        # Else every device draws the random bits of the global batch. Threefry needs no help.
        "xla_tpu_spmd_rng_bit_generator_unsafe": rng == "rbg",
    }

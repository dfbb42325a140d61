"""Floating-point operations of a training step, and peak rates of chips."""

import dataclasses

from jax.sharding import Mesh

from bert_jax.model.architecture import Architecture


def pretraining_flops_per_example(
    architecture: Architecture, *, length: float, predictions: float
) -> float:
    """FLOPs of forward and backward for one example, matrix products only.

    Counted part by part: 6 S L (4 D^2 + 2 D F) dense layers (3 D F if gated), 12 L S^2 D attention
    (in local layers S times the window), 6 M (D E + E V) masked LM head, 6 (D^2 + 2 D) pooler and
    next sentence head, and 6 S E D for embeddings of another size. The common 6 N per token would
    charge the embedding table to every token, 23 % too much for base at 128 tokens.

    Args:
      architecture: L layers, D features, E of an embedding, F inside a feed-forward layer, V words.
      length: S, tokens of the example.
      predictions: M, masked positions.
    """
    layers, hidden = architecture.num_layers, architecture.hidden_size
    products = 3 if architecture.feed_forward == "glu" else 2
    feed_forward = products * hidden * architecture.intermediate_size
    projections = 5 if architecture.value_gate else 4
    dense = 6 * length * layers * (projections * hidden**2 + feed_forward)
    local = sum(map(architecture.is_local, range(layers)))
    window = min(length, architecture.local_window + 1)
    keys = (layers - local) * length + local * window
    if (buckets := architecture.position_embedding.buckets_of_distances()) is not None:
        keys += layers * (int(buckets.max()) + 1)  # which queries and keys are compared with
    attention = 12 * length * keys * hidden
    embedding = architecture.embedding_features
    projection = 0 if architecture.embedding_size is None else 6 * length * embedding * hidden
    transform = hidden * embedding if architecture.head_transform else 0
    masked_lm = 6 * predictions * (transform + embedding * architecture.vocab_size)
    next_sentence = 6 * (hidden**2 + 2 * hidden)
    return projection + dense + attention + masked_lm + next_sentence


GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device can do: a TPU chip, or half of one where a chip shows as two devices.

    Attributes:
      peak_flops: dense bf16 FLOP/s.
      flops_per_cycle: of its matrix units: their number x rows x columns x 2.
      hbm_bytes: memory that the compiler lets a program use, a little less than the chip has.
    """

    peak_flops: float
    flops_per_cycle: int
    hbm_bytes: float

    @property
    def clock(self) -> float:
        """Cycles per second: at this rate the matrix units reach the published peak."""
        return self.peak_flops / self.flops_per_cycle


# By `jax.Device.device_kind`. Peaks: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm.
# The clock rates that follow for v2, v3 and v4 are those of Jouppi et al. 2023, table 4,
# https://arxiv.org/abs/2304.01433: 700, 940 and 1050 MHz. Memory: the limit in the compiler's own
# message (the nominal size for v2 and v3).
CHIPS = {
    "TPU v2": Chip(46e12 / 2, 1 * 128 * 128 * 2, 8 * GIB),
    "TPU v3": Chip(123e12 / 2, 2 * 128 * 128 * 2, 16 * GIB),
    "TPU v4": Chip(275e12, 8 * 128 * 128 * 2, 30.75 * GIB),
    "TPU v5 lite": Chip(197e12, 4 * 128 * 128 * 2, 15.75 * GIB),
    "TPU v5": Chip(459e12, 8 * 128 * 128 * 2, 95.73 * GIB),
    # The compiler counts up to four units of 256 x 256 a device in these two.
    "TPU v6 lite": Chip(918e12, 4 * 256 * 256 * 2, 31.24 * GIB),
    "TPU7x": Chip(2307e12 / 2, 4 * 256 * 256 * 2, 94.74 * GIB),
}


def peak_flops_per_device(device_kind: str) -> float | None:
    """bf16 FLOP/s of one JAX device, or None for a kind that is not in the table (CPU, GPU)."""
    return CHIPS[device_kind].peak_flops if device_kind in CHIPS else None


def peak_flops(mesh: Mesh) -> float | None:
    """bf16 FLOP/s of all devices of a mesh together; None where it is not known."""
    peak = peak_flops_per_device(mesh.devices.flat[0].device_kind)
    return None if peak is None else peak * mesh.size

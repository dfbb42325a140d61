"""Floating-point operations of a BERT training step, and what chips can do in a second."""


def pretraining_flops_per_example(
    *,
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    vocab_size: int,
    length: float,
    predictions: float,
) -> float:
    """FLOPs of forward and backward for one example, matrix products only.

    Counted part by part: 6 S L (4 D^2 + 2 D F) dense layers, 12 L S^2 D attention,
    6 M (D^2 + D V) masked LM head, 6 (D^2 + 2 D) pooler and next sentence head. The common 6 N a
    token would charge the embedding table to every token, 23 % too much for base at 128 tokens.

    Args:
      num_layers, hidden_size, intermediate_size, vocab_size: L, D, F and V.
      length: S, tokens of the example.
      predictions: M, masked positions.
    """
    layers, hidden = num_layers, hidden_size
    dense = 6 * length * layers * (4 * hidden**2 + 2 * hidden * intermediate_size)
    attention = 12 * layers * length**2 * hidden
    masked_lm = 6 * predictions * (hidden**2 + hidden * vocab_size)
    next_sentence = 6 * (hidden**2 + 2 * hidden)
    return dense + attention + masked_lm + next_sentence


# Dense bf16 FLOP/s of a chip and JAX devices on it, by `jax.Device.device_kind`.
_PEAKS = {
    "TPU v2": (46e12, 2),
    "TPU v3": (123e12, 2),
    "TPU v4": (275e12, 1),
    "TPU v5 lite": (197e12, 1),
    "TPU v5": (459e12, 1),
    "TPU v6 lite": (918e12, 1),
    "TPU7x": (2307e12, 2),
}


def peak_flops_per_device(device_kind: str) -> float | None:
    """bf16 FLOP/s of one JAX device, or None for a kind that is not in the table (CPU, GPU)."""
    if device_kind not in _PEAKS:
        return None
    flops, devices = _PEAKS[device_kind]
    return flops / devices

"""Losses and accuracies as sums and counts.

Nothing here divides: a number is a sum and a count until it is printed, so that masked-token counts
that differ between devices, microbatches and steps weigh as they should.
"""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """Softmax cross-entropy in nats and accuracy, summed over all weighted positions.

    Args:
      logits: [..., classes] fp32.
      labels: [...] int32 in [0, classes); any value where the weight is 0.
      weights: [...] fp32, 0 for positions that do not count.

    Returns:
      {"loss", "correct", "count"}: fp32 scalars, each a sum over positions times weights. A label
      is correct if no other class scores higher.
    """
    # A masked sum and not a gather, whose gradient would be a scatter into all logits.
    is_label = jnp.arange(logits.shape[-1]) == jnp.where(weights > 0, labels, 0)[..., None]
    label_logits = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    nats = jax.nn.logsumexp(logits, axis=-1) - label_logits
    # The label wins if no logit is higher: cheaper than an argmax over a vocabulary.
    correct = label_logits >= jnp.max(logits, axis=-1)
    return {
        "loss": jnp.sum(nats * weights),
        "correct": jnp.sum(correct * weights),
        "count": jnp.sum(weights),
    }

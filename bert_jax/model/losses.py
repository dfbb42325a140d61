"""Losses and accuracies as sums and counts.

Nothing here divides: sums and counts are kept apart until they are reported, so that devices,
microbatches and steps are weighted by their numbers of masked tokens.
"""

import jax
import jax.numpy as jnp

_Residuals = tuple[jax.Array, jax.Array, jax.Array]  # logits, labels, log of the total


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
    weights = weights.reshape(-1)
    labels = jnp.where(weights > 0, labels.reshape(-1), 0)
    nats, correct = nats_and_correct(logits.reshape(len(labels), -1), labels)
    return {
        "loss": jnp.sum(nats * weights),
        "correct": jnp.sum(correct * weights),
        "count": jnp.sum(weights),
    }


def log_probability(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[...] fp32: log probability of each target, in nats.

    Args:
      logits: [..., classes] fp32.
      targets: [...] int32.
    """
    found = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return found - jax.nn.logsumexp(logits, axis=-1)


def divergence(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[...] fp32: Kullback-Leibler divergence, in nats, of a softmax from that of `targets`.

    Args:
      logits, targets: [..., classes] fp32.
    """
    chances = jax.nn.softmax(targets, axis=-1)
    return jnp.sum(
        chances * (jax.nn.log_softmax(targets, axis=-1) - jax.nn.log_softmax(logits, axis=-1)),
        axis=-1,
    )


@jax.custom_vjp
def nats_and_correct(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each position: its cross-entropy, and whether no other class scores higher.

    Args:
      logits: [..., classes] fp32.
      labels: [...] int32 in [0, classes).
    """
    return _forward(logits, labels)[0]


def _forward(
    logits: jax.Array, labels: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], _Residuals]:
    # The label's logit is gathered and its gradient written out below: the gradient of a gather is
    # a scatter, and a masked sum would be one more pass over all logits.
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    highest = jnp.max(logits, axis=-1)
    log_total = highest + jnp.log(jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1))
    return (log_total - label_logits, label_logits >= highest), (logits, labels, log_total)


def _backward(
    residuals: _Residuals, gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None]:
    logits, labels, log_total = residuals
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    probabilities = jnp.exp(logits - log_total[..., None])
    return gradients[0][..., None] * (probabilities - is_label), None


nats_and_correct.defvjp(_forward, _backward)

"""BERT as its formulas say, on one example at a time: the reference of objectives."""

import operator

import jax
import jax.numpy as jnp


def norm(x, p):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-12) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return x * (1 + jax.lax.erf(x / jnp.sqrt(2.0))) / 2


def encode(bert, ids, types, causal, heads):
    """[n, hidden]: the states of one example; if `causal`, no token sees those after it."""
    tables = bert["embeddings"]
    x = tables["word"]["embedding"][ids] + tables["token_type"]["embedding"][types]
    x = norm(x + tables["position"]["embedding"][: len(ids)], tables["norm"])
    if "projection" in tables:
        x = dense(x, tables["projection"])
    n, features = x.shape
    size = features // heads
    allowed = jnp.tril(jnp.ones((n, n), bool)) | ~jnp.asarray(causal)
    layers = bert["encoder"]["layers"]
    for layer in range(len(layers["attention_norm"]["scale"])):
        p = jax.tree.map(operator.itemgetter(layer), layers)
        query, key, value = (
            dense(x, p["attention"][name]).reshape(n, heads, size)
            for name in ("query", "key", "value")
        )
        mixed = []
        for head in range(heads):
            scores = query[:, head] @ key[:, head].T / jnp.sqrt(1.0 * size)
            shares = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1)
            mixed.append(shares @ value[:, head])
        x = norm(
            x + dense(jnp.concatenate(mixed, axis=-1), p["attention"]["output"]),
            p["attention_norm"],
        )
        inner = gelu(dense(x, p["feed_forward"]["intermediate"]))
        x = norm(x + dense(inner, p["feed_forward"]["output"]), p["feed_forward_norm"])
    return x


def words(params, hidden, table, vocab_size):
    """[n, vocab_size] logits of the masked LM head."""
    head = params["masked_lm"]
    scores = norm(gelu(dense(hidden, head["dense"])), head["norm"]) @ table.T + head["bias"]
    return scores[:, :vocab_size]

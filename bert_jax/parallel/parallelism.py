"""What a model needs to run on a mesh: sharded activations, gathered layers, attention."""

import functools

import jax
from jax.sharding import Mesh

from bert_jax.model.architecture import Numerics, Parallel
from bert_jax.model.attention import (
    EVERYWHERE,
    SPLASH_MULTIPLE,
    Attend,
    Reach,
    attention,
    splash_attention,
)
from bert_jax.parallel import rules

# For shorter rows the scores are small and XLA's own fusions are as good.
SPLASH_MIN_LENGTH = 512


def parallelism(mesh: Mesh, numerics: Numerics) -> Parallel:
    """The `Parallel` of a model that runs on a mesh."""
    return Parallel(
        constrain=rules.activation_constraint(mesh),
        gather_layer=functools.partial(rules.gather_layer, mesh),
        attend=choose_attention(numerics.attention, mesh),
    )


def choose_attention(implementation: str, mesh: Mesh) -> Attend:
    """The attention function of a model on a mesh.

    Args:
      implementation: "xla"; "splash", the TPU kernel if the length is a multiple of
        `SPLASH_MULTIPLE` and nothing is dropped, XLA otherwise; or "auto", splash on TPUs for rows
        of at least `SPLASH_MIN_LENGTH` tokens. XLA also computes ALiBi, relative positions and
        rows with causal examples.
      mesh: mesh to run on. Off TPUs the kernel runs in its interpreter, slowly.
    """
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    if implementation == "xla" or (implementation == "auto" and not on_tpu):
        return attention
    heads = rules.spec(("batch", None, "heads", None))
    shortest = SPLASH_MULTIPLE if implementation == "splash" else SPLASH_MIN_LENGTH

    def attend(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        segment_ids: jax.Array,
        *,
        reach: Reach = EVERYWHERE,
        dropout_rate: float = 0.0,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        length = query.shape[1]
        dropped = dropout_key is not None and dropout_rate > 0
        scored = reach.slopes is not None or reach.distances is not None
        scored |= reach.causal is not None  # the kernel's masks are the same for all rows
        if dropped or scored or length < shortest or length % SPLASH_MULTIPLE:
            return attention(
                query,
                key,
                value,
                segment_ids,
                reach=reach,
                dropout_rate=dropout_rate,
                dropout_key=dropout_key,
            )
        kernel = functools.partial(splash_attention, window=reach.window, interpret=not on_tpu)
        return jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(heads, heads, heads, rules.spec(("batch", None))),
            out_specs=heads,
            check_vma=False,
        )(query, key, value, segment_ids)

    return attend

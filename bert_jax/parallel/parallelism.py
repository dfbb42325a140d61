"""What a model needs to run on a mesh: sharded activations, gathered layers, attention."""

import functools

import jax
from jax.sharding import Mesh

from bert_jax.errors import UserError
from bert_jax.model.architecture import Numerics, Parallel
from bert_jax.model.attention import (
    EVERYWHERE,
    SPLASH_MULTIPLE,
    Attend,
    Reach,
    attention,
    splash_attention,
)
from bert_jax.model.dropout import dropped_levels
from bert_jax.model.flash_attention import dropout_streams, flash_attention, what_does_not_fit
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


def check_attention(mesh: Mesh, numerics: Numerics) -> None:
    """Raises UserError if a model is to be trained with a kernel that the devices do not have."""
    platform = mesh.devices.flat[0].platform
    if numerics.attention == "flash" and numerics.attention_dropout and platform != "tpu":
        raise UserError(
            "config.numerics.attention='flash' is a kernel for TPUs, and these devices are of the "
            f"platform {platform}: use auto or xla"
        )


def choose_attention(implementation: str, mesh: Mesh) -> Attend:
    """The attention function of a model on a mesh.

    Args:
      implementation: "xla"; "splash", the TPU kernel if the length is a multiple of
        `SPLASH_MULTIPLE` and nothing is dropped, XLA otherwise; "auto", splash on TPUs for rows
        of at least `SPLASH_MIN_LENGTH` tokens; or "flash", the TPU kernel with dropout, and auto
        where nothing is dropped. XLA also computes ALiBi, relative positions and, instead of
        splash, rows with causal examples.
      mesh: mesh to run on. Off TPUs the kernels run in their interpreter, slowly.
    """
    if implementation == "flash":
        return functools.partial(_flash, mesh, choose_attention("auto", mesh))
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


def _flash(
    mesh: Mesh,
    without_dropout: Attend,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    reach: Reach = EVERYWHERE,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """`attention` by the kernel with dropout, or by `without_dropout` if nothing is dropped.

    Raises:
      UserError: the kernel does not take such arrays.
    """
    if dropout_key is None or not dropped_levels(dropout_rate):
        return without_dropout(query, key, value, segment_ids, reach=reach)
    rows, length, heads, head_dim = query.shape
    scored = reach.slopes is not None or reach.distances is not None
    if reason := what_does_not_fit(length, head_dim, scored=scored):
        raise UserError(
            f"config.numerics.attention='flash' takes {reason}: use auto or xla, or "
            "config.numerics.attention_dropout=0"
        )
    kernel = functools.partial(
        flash_attention,
        window=reach.window,
        dropout_rate=dropout_rate,
        interpret=mesh.devices.flat[0].platform != "tpu",
    )
    by_head, by_row = ("batch", None, "heads", None), ("batch", None)
    arrays = [query, key, value, segment_ids, dropout_streams(dropout_key, rows, heads)]
    names = [by_head, by_head, by_head, by_row, ("batch", "heads", None)]
    if reach.causal is not None:
        arrays.append(reach.causal)
        names.append(by_row)
    return jax.shard_map(
        kernel,
        mesh=mesh,
        in_specs=tuple(map(rules.spec, names)),
        out_specs=rules.spec(by_head),
        check_vma=False,
    )(*arrays)

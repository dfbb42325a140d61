"""The two compiled steps: one trains, one evaluates.

An objective (`bert_jax.objective.pretraining.PreTraining`, say) defines what to learn. The step
computes gradients, accumulates them and applies the optimizer; it is the same for every objective.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from bert_jax.errors import UserError
from bert_jax.model.parameters import Params, joined
from bert_jax.objective.masking import AdaptiveMasking
from bert_jax.objective.protocol import BoundObjective
from bert_jax.train.guard import Guard
from bert_jax.train.schedules import Rate
from bert_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[TrainState, Metrics]]

# Metrics that hold whether a step is skipped or not.
KEPT = ("positions", "tokens", "examples", "learning_rate", "param_norm")


def make_train_step(
    objective: BoundObjective,
    optimizer: optax.GradientTransformation,
    rate: Rate,
    *,
    gradient_accumulation: int = 1,
    ema_decay: float = 0.0,
    guard: Guard | None = None,
    adaptive: AdaptiveMasking | None = None,
    load: Callable[[Params], Params] = lambda params: params,
    store: Callable[[Params], Params] = lambda gradients: gradients,
    by_part: Callable[[Callable[[Batch], Any]], Callable[[Batch], Any]] | None = None,
) -> Step:
    """Builds the train step, a pure function to jit.

    It is `train_step(state, batch, dropout_key, frozen, *horizon) -> (state, metrics)`; the last
    two may be left out.

    The loss is the sum over heads of (sum over the global batch / count of the global batch), some
    times a factor of the objective. The counts are known before the forward pass, so every
    microbatch divides by the count of the whole batch, and accumulation gives the result of one
    large batch up to rounding.

    Args:
      objective: what to learn.
      optimizer: turns gradients into a direction; the step multiplies it by the learning rate.
      rate: step -> learning rate; further arguments of the train step are passed on to it.
      gradient_accumulation: number of microbatches; divides the number of rows.
      ema_decay: share of the old average in the new one, if the state has an average.
      guard: which steps to skip; the state then has its memory. None skips none.
      adaptive: how rates of masking follow the predictions; the state then has them. None if they
        are fixed.
      load: stored parameters -> those to compute with, cast and gathered.
      store: gradients -> gradients in the dtype and sharding of the stored parameters.
      by_part: builds the function that runs another on each part of a microbatch; gradients are
        then reduced once, after the last microbatch, and before that added up by part in fp32.
        None reduces those of each microbatch.

    Returns:
      The step. Its dropout key is typed, and folded with step and microbatch; None trains without
      dropout. `frozen` are parameters that the objective reads beside those of the state, such as a
      teacher's; they have no gradients. Its metrics are the objective's sums, those of
      `count_positions`, and the scalars "grad_norm" (before clipping), "update_norm", "param_norm"
      (before the update), "learning_rate", and under a guard those of `guarded`.

    Raises:
      UserError: when the step is traced, if there are adaptive rates and the objective counts no
        words.
    """

    def train_step(
        state: TrainState,
        batch: Batch,
        dropout_key: jax.Array | None,
        frozen: Mapping[str, Any] = MappingProxyType({}),
        *horizon: jax.Array,
    ) -> tuple[TrainState, Metrics]:
        words = state.words
        if words is not None:
            batch = batch | {"word_rates": words.rates[batch["input_ids"]]}
        batch = objective.prepare(batch, state.step)
        counts = {head: jnp.sum(w) for head, w in objective.weights(batch).items()}
        params, beside = load(state.params), load(dict(frozen))
        step_key = None if dropout_key is None else jax.random.fold_in(dropout_key, state.step)

        def loss(params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
            sums = objective.sums(joined(params, beside), batch, key)
            losses = [sums[f"{head}_loss"] / jnp.maximum(counts[head], 1) for head in counts]
            factors = [objective.factors.get(head) for head in counts]
            losses = [x if factor is None else factor * x for factor, x in zip(factors, losses)]
            return cast(jax.Array, sum(losses)), sums  # 0 only if there were no head

        def gradients_and_sums(index: Any, microbatch: Batch) -> tuple[Params, Metrics]:
            key = None if step_key is None else jax.random.fold_in(step_key, index)
            return jax.grad(loss, has_aux=True)(params, microbatch, key)

        def to_add(index: Any, microbatch: Batch) -> tuple[Params, Metrics]:
            if by_part is None:
                gradients, sums = gradients_and_sums(index, microbatch)
                return store(gradients), sums
            gradients, sums = by_part(functools.partial(gradients_and_sums, index))(microbatch)
            return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), sums

        if gradient_accumulation == 1:
            gradients, metrics = gradients_and_sums(0, batch)
            gradients = store(gradients)
        else:
            # A microbatch takes every n-th row, so that each device splits the rows it already has.
            microbatches = jax.tree.map(
                lambda x: x.reshape(-1, gradient_accumulation, *x.shape[1:]).swapaxes(0, 1), batch
            )
            first = jax.tree.map(lambda x: x[0], microbatches)
            zeros = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(to_add, 0, first)
            )
            (gradients, metrics), _ = jax.lax.scan(
                lambda total, xs: (jax.tree.map(jnp.add, total, to_add(*xs)), None),
                zeros,
                (jnp.arange(gradient_accumulation), microbatches),
            )
            if by_part is not None:
                gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)
                gradients = store(gradients)
                metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

        direction, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        learning_rate = rate(state.step, *horizon)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
        metrics |= count_positions(batch)
        metrics |= {
            "grad_norm": optax.tree.norm(gradients),
            # Not of the direction: with the new parameters at hand, one pass over them does it all.
            "update_norm": optax.tree.norm(jax.tree.map(jnp.subtract, params, state.params)),
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": learning_rate,
        }
        ema = state.ema
        if ema is not None:
            ema = jax.tree.map(lambda a, p: ema_decay * a + (1.0 - ema_decay) * p, ema, params)
        if words is not None:
            assert adaptive is not None
            if "word_masked" not in metrics:
                raise UserError(
                    "config.masking: adaptive rates need the sums of `count_words`, which "
                    "config.objective does not give"
                )
            by_word = metrics.pop("word_correct"), metrics.pop("word_masked")
            words = adaptive.renewed(words, state.step + 1, *by_word)
        after = TrainState(state.step + 1, params, opt_state, ema, words=words)
        return guarded(guard, state, after, metrics) if guard else (after, metrics)

    return train_step


def guarded(
    guard: Guard, before: TrainState, after: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """What a step gives under a guard.

    Returns:
      The state after the step, or, if it is skipped, the state before it with the step counted; and
      the metrics, those of a skipped step 0, with "skipped", 1 or 0, "skips" in a row, and
      "skips_left" before the run stops.
    """
    assert before.guard is not None
    skip, memory = guard.judge(before.guard, metrics["grad_norm"])
    held = dataclasses.replace(before, step=after.step, guard=memory)
    after = dataclasses.replace(after, guard=memory)
    metrics = {
        name: value if name in KEPT else jnp.where(skip, jnp.zeros_like(value), value)
        for name, value in metrics.items()
    }
    metrics |= {
        "skipped": skip.astype(jnp.int32),
        "skips": memory.skips,
        "skips_left": guard.max_skips - memory.skips,
    }
    return jax.tree.map(lambda old, new: jnp.where(skip, old, new), held, after), metrics


def make_eval_step(
    objective: BoundObjective, load: Callable[[Params], Params] = lambda params: params
) -> Callable[[Params, Batch], Metrics]:
    """Builds `eval_step(params, batch) -> sums`, without dropout; a pure function to jit.

    `load` is as in `make_train_step`.
    """

    def eval_step(params: Params, batch: Batch) -> Metrics:
        batch = objective.prepare(batch)
        return objective.sums(load(params), batch) | count_positions(batch)

    return eval_step


def count_positions(batch: Batch) -> Metrics:
    """int32 sums: "positions" of the rows, "tokens" (padding excluded) and "examples".

    Empty rows, which only fill up the last batch of an evaluation, do not count.
    """
    segment_ids = batch["segment_ids"]
    rows = jnp.sum(jnp.any(segment_ids > 0, axis=1))
    return {
        "positions": rows * segment_ids.shape[1],
        "tokens": jnp.sum(segment_ids > 0),
        "examples": jnp.sum(jnp.max(segment_ids, axis=1)),
    }

"""The training state: step, parameters, optimizer state, and members that some runs have.

Batches, masks and dropout are functions of (config, seed, step) and of these values, so they are
all that a resume needs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bert_jax.model.parameters import Params
from bert_jax.objective.masking import WordRates
from bert_jax.train.guard import GuardState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The training state, a pytree.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: nested dict of fp32 arrays; layers are stacked on a leading axis.
      opt_state: state of the optax transformation.
      ema: running average of the parameters, like them; None in a run without.
      guard: what the guard of the steps remembers; None in a run without.
      words: how often words are masked, if that adapts; None in a run where it does not.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    ema: Params | None = None
    guard: GuardState | None = None
    words: WordRates | None = None

    @property
    def averaged(self) -> Params:
        """The running average of the parameters; in a run without, the parameters."""
        return self.params if self.ema is None else self.ema


class Members(NamedTuple):
    """Which optional members the state of a run has; see `TrainState`. `words` is their number."""

    ema: bool = False
    guard: bool = False
    words: int = 0


NO_MEMBERS = Members()


def init_state(
    init_params: Callable[[jax.Array], Params],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    members: Members = NO_MEMBERS,
) -> TrainState:
    """The state at step 0. Pure: jit it with output shardings, or trace it for shapes."""
    params = init_params(key)
    state = TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))
    return start_members(state, members)


def start_members(state: TrainState, members: Members) -> TrainState:
    """The state with the members of its run: those that it lacks start, others are dropped."""
    ema = state.ema if members.ema else None
    if members.ema and ema is None:
        ema = jax.tree.map(jnp.copy, state.params)  # both are donated to the next step
    guard = (state.guard or GuardState.start()) if members.guard else None
    words = (state.words or WordRates.start(members.words)) if members.words else None
    return dataclasses.replace(state, ema=ema, guard=guard, words=words)


def num_params(params: Params) -> int:
    """Number of parameters, from arrays or their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

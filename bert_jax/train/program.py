"""The compiled part of training: the initial state and the train step."""

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bert_jax.model.architecture import Numerics
from bert_jax.model.model import Model
from bert_jax.model.parameters import Axes, Params
from bert_jax.objective.masking import AdaptiveMasking
from bert_jax.objective.protocol import BoundObjective
from bert_jax.parallel import rules
from bert_jax.parallel.compiler import compiler_options
from bert_jax.parallel.mesh import Layout
from bert_jax.train.optimizers import Optimizer
from bert_jax.train.schedules import Rate
from bert_jax.train.state import Members, TrainState, init_state, start_members
from bert_jax.train.step import Batch, Metrics, make_train_step

# Parameters and masks fold small numbers (a count, an epoch) into the key of the seed. Dropout
# folds in a large one, to use other keys.
DROPOUT_STREAM = 2**31
RNG_IMPLEMENTATIONS = {"threefry": "threefry2x32", "rbg": "rbg"}


class Settings(Protocol):
    """The part of a configuration that a program reads."""

    @property
    def rng(self) -> str: ...
    @property
    def numerics(self) -> Numerics: ...
    @property
    def optimizer(self) -> Optimizer: ...
    @property
    def mesh(self) -> Layout: ...


class Program:
    """The initial state and the train step, laid out on a mesh. Seeds share one program.

    Attributes:
      abstract_state: shapes of the state with their shardings.
      init: key -> state, sharded; compiled at its first call.
      frozen: parameters that the objective reads and does not train.
    """

    def __init__(
        self,
        settings: Settings,
        objective: BoundObjective,
        model: Model,
        optimizer: optax.GradientTransformation,
        rate: Rate,
        mesh: Mesh,
        *,
        timed: bool = False,
        adaptive: AdaptiveMasking | None = None,
        vocab_size: int = 0,
        frozen: Params | None = None,
    ):
        """Traces shapes; compiles nothing yet.

        Args:
          settings: settings of the run, or of one of its stages.
          objective: what to learn.
          model: model of the objective.
          optimizer: without its learning rate.
          rate: step -> learning rate.
          mesh: mesh to run on.
          timed: the rate also takes the number of steps that the time allows.
          adaptive: how rates of masking follow the predictions; None if they are fixed.
          vocab_size: number of words that have a rate.
          frozen: parameters that the objective reads beside those of the state, on the mesh, or
            their shapes with shardings; None for none.
        """
        guard = settings.optimizer.guard if settings.optimizer.guard.max_skips else None
        members = Members(
            ema=settings.optimizer.ema_decay > 0,
            guard=guard is not None,
            words=vocab_size if adaptive else 0,
        )
        init = functools.partial(init_state, model.init, optimizer, members=members)
        shapes = jax.eval_shape(init, jax.random.key(0))
        zero1 = settings.mesh.zero1
        shardings = rules.state_shardings(mesh, shapes, model.axes, zero1=zero1)
        self.abstract_state: TrainState = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        self.init = jax.jit(init, out_shardings=shardings)
        self._members = members
        self.compiler_options = compiler_options(mesh, settings.rng)

        def store(gradients: Params) -> Params:
            gradients = rules.scatter(mesh, gradients, model.axes, shardings.params)
            return jax.tree.map(lambda g: g.astype(jnp.float32), gradients)

        # A device then adds up all gradients in fp32, which within a slice takes longer than to
        # reduce them. Where parameters are gathered by layer, no device is to hold all of them.
        accumulation = settings.optimizer.gradient_accumulation
        crosses_slices = mesh.shape["slice"] > 1
        reduce_once = accumulation > 1 and crosses_slices and mesh.shape["fsdp"] == 1
        replicated = rules.replicated(mesh)
        self.frozen = frozen or {}
        self._step = jax.jit(
            make_train_step(
                objective,
                optimizer,
                rate,
                gradient_accumulation=accumulation,
                ema_decay=settings.optimizer.ema_decay,
                guard=guard,
                adaptive=adaptive,
                load=loader(mesh, model.axes, settings.numerics, copies=not reduce_once),
                store=store,
                by_part=functools.partial(rules.by_part, mesh) if reduce_once else None,
            ),
            in_shardings=(
                shardings,
                rules.batch_sharding(mesh),
                replicated,
                jax.tree.map(lambda x: x.sharding, self.frozen),
                *[replicated] * timed,
            ),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
            compiler_options=self.compiler_options,
        )
        self._key = functools.partial(dropout_key, settings)

    def step(
        self, state: TrainState, batch: Batch, key: jax.Array | None, *horizon: jax.Array | int
    ) -> tuple[TrainState, Metrics]:
        """One step; compiled at its first call, and the state is donated.

        Args:
          state: the state before.
          batch: batch of the step, on the mesh.
          key: from `dropout_key`.
          *horizon: the second argument of the rate, if it is `timed`.

        Returns:
          The state after it, and the metrics; see `make_train_step`.
        """
        stepped: tuple[TrainState, Metrics] = self._step(state, batch, key, self.frozen, *horizon)
        return stepped

    def place(self, state: TrainState) -> TrainState:
        """A state for the same model, perhaps of another layout or without some members."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        return jax.device_put(start_members(state, self._members), shardings)

    def dropout_key(self, seed: int) -> jax.Array | None:
        """The key of the step; None if nothing is dropped."""
        return self._key(seed)

    def lower(self, batch: Mapping[str, jax.ShapeDtypeStruct], seed: int) -> jax.stages.Lowered:
        """Lowers the step for batches of these shapes; the mesh's devices need not exist."""
        key = jax.eval_shape(lambda: self.dropout_key(seed))
        return self._step.lower(self.abstract_state, batch, key, self.frozen)


def dropout_key(settings: Settings, seed: int) -> jax.Array | None:
    """The key into which the step folds its number; None if nothing is dropped."""
    if settings.numerics.hidden_dropout == settings.numerics.attention_dropout == 0:
        return None
    key = jax.random.key(seed, impl=RNG_IMPLEMENTATIONS[settings.rng])
    return jax.random.fold_in(key, DROPOUT_STREAM)


def loader(mesh: Mesh, axes: Axes, numerics: Numerics, *, copies: bool = True) -> Any:
    """Builds the function that casts and gathers stored parameters for computation.

    Weights of matrix products and embeddings are cast before they are gathered: bf16 halves the
    bytes, and gradients are then reduced in bf16 too. Biases and LayerNorm stay fp32. For `copies`
    see `rules.gather`. With `fake_int8` they stay fp32, which is what `in_int8` rounds.
    """
    dtype = jnp.dtype("float32" if numerics.fake_int8 else numerics.compute_dtype)

    def cast(keys: Any, leaf: jax.Array) -> jax.Array:
        is_weight = keys[-1].key in ("kernel", "embedding") and leaf.dtype != jnp.int8
        return leaf.astype(dtype) if is_weight else leaf

    def load(params: Params) -> Params:
        return rules.gather(
            mesh, jax.tree_util.tree_map_with_path(cast, params), axes, copies=copies
        )

    return load

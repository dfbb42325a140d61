"""Pretrains BERT: masked LM and next sentence prediction on a token store."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from bert_jax.config import Config, Stage, read_config
from bert_jax.data.batches import Batches, PremaskedBatches, prefetch
from bert_jax.errors import UserError
from bert_jax.interop.initial import initial_params, replace_params
from bert_jax.model.heads import PRETRAINING
from bert_jax.objective.pretraining import PreTraining
from bert_jax.parallel import hosts
from bert_jax.parallel.mesh import make_mesh
from bert_jax.report.curves import draw_curves
from bert_jax.report.flops import peak_flops_per_device
from bert_jax.report.metrics_file import read_metrics
from bert_jax.train import build
from bert_jax.train.budget import Budget
from bert_jax.train.checkpoints import Checkpoints, latest_step
from bert_jax.train.evaluation import Evaluation
from bert_jax.train.loop import Outcome, train
from bert_jax.train.metrics import MetricsWriter, Sums
from bert_jax.train.profiling import Profiler
from bert_jax.train.state import TrainState, num_params
from bert_jax.train.workdirs import check_workdir, claim_workdir

# A resumed run may change how it computes and reports, but not what it learns from or into.
FREE_TO_CHANGE = (
    "mesh.",
    "steps:",
    "budget_hours:",
    "target_",
    "log_every:",
    "eval_",
    "checkpoint_every:",
    "keep_checkpoints:",
    "optimizer.learning_rate:",
    "optimizer.warmup_steps:",
    "data.store:",
    "model.attention:",
    "model.scan_layers:",
    "model.remat:",
)


def pretrain(config: Config, workdir: epath.PathLike) -> bool:
    """Trains all stages of a run, or until it is over or told to stop; goes on with one cut short.

    Args:
      config: of the run; see `load_config`.
      workdir: where checkpoints, metrics and curves go.

    Returns:
      True: the run is over. False: a signal stopped it, and everything is saved.

    Raises:
      UserError: config, store and workdir do not fit together, or the processes not to each other.
      TrainingDiverged: a gradient is not finite.
    """
    workdir = epath.Path(workdir)
    with hosts.agreement():
        store = build.configured_store(config)
    build.check_same(config, store)
    hosts.check_shared(workdir)
    with hosts.agreement():
        if hosts.is_primary():
            check_can_go_on(workdir, config, store)

    initial = {}
    if config.init_from and latest_step(workdir) is None:
        with hosts.agreement():
            initial, lines = initial_params(config, store.wordpiece, PRETRAINING)
        for line in lines:
            hosts.print_once(line)
    done = latest_step(workdir) or 0
    stages = [stage for stage in config.stages() if stage.last_step > done]
    if not stages:
        hosts.print_once(f"{workdir} has all its {done} steps: nothing to train")
        return True

    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    for stage in stages:
        with stage.errors():
            build.check_mesh(stage.config, mesh)
    model = build.build_model(config.model, mesh)
    optimizer = build.build_optimizer(config.optimizer)
    abstract_state, init_state = build.abstract_state(
        model, optimizer, mesh, zero1=config.mesh.zero1
    )
    hosts.print_once(
        f"{num_params(abstract_state.params):,} parameters on {mesh.size} "
        f"{jax.devices()[0].device_kind} device(s), mesh {dict(mesh.shape)}"
    )
    hosts.print_once(store.summary)
    # All at once: what does not fit the last stage is to fail before the first one is trained.
    parts = [build_part(s, store, model, optimizer, abstract_state, mesh) for s in stages]

    with hosts.agreement():
        if hosts.is_primary():
            claim_workdir(workdir, config.to_dict(), identity(store), store.wordpiece)
    with Checkpoints(workdir, keep=config.keep_checkpoints) as checkpoints:
        if checkpoints.latest_step() is None:
            state, progress = init_state(jax.random.key(config.seed)), {}
            given = build.put_params(initial, mesh, zero1=config.mesh.zero1)
            state = dataclasses.replace(state, params=replace_params(state.params, given))
        else:
            state, progress = checkpoints.restore(abstract_state)
            hosts.print_once(f"resuming at step {done}")
        budget = Budget(config.steps, config.budget_hours, progress)
        over = is_over(config, done, budget, progress.get("mlm_accuracy", 0.0))
        if over:
            hosts.print_once(f"{workdir}: {over}: nothing to train")
            return True

        unlogged = progress.get("unlogged", {})
        with MetricsWriter(workdir, done) as writer, Profiler(workdir / "profile") as profiler:
            for part in parts:
                if done == part.stage.first_step:
                    writer.write(done, "baseline", part.evaluation.baselines())
                state, stopped_by, accuracy = train_part(
                    part, state, checkpoints, writer, profiler, budget, unlogged, mesh
                )
                done, unlogged = int(state.step), {}
                over = is_over(config, done, budget, accuracy)
                if stopped_by or over:
                    break
    if hosts.is_primary():
        draw_curves({workdir.name: read_metrics(workdir)}, workdir / "curves.png")
    if over:
        hosts.print_once(over)
    elif done < config.steps:
        hosts.print_once(f"{stopped_by.name}: saved at step {done}; run again to go on")
        return False
    return True


class Part(NamedTuple):
    """What trains one stage of a run."""

    stage: Stage
    batches: Batches | PremaskedBatches
    heads: tuple[str, ...]
    evaluation: Evaluation
    train_step: Callable


def build_part(
    stage: Stage,
    store: build.AnyStore,
    model: build.Model,
    optimizer: optax.GradientTransformation,
    abstract_state: TrainState,
    mesh: Mesh,
) -> Part:
    """Plans the first epoch and draws the held-out examples; compiles at the first step.

    Raises:
      UserError: the store has no batches for this stage.
    """
    config = stage.config
    with stage.errors():
        batches = build.training_batches(config, store, mesh)
        masking = build.build_masking(config.data, store.wordpiece)
        objective = PreTraining(model.graphdef, masking, config.seed)
        evaluation = Evaluation(config, store, objective, mesh)
    hosts.print_once(
        f"{stage.name or 'run'}: {config.steps:,} steps of {config.data.batch_size:,} rows of "
        f"{config.data.max_seq_length} tokens, {batches.rows_per_epoch:,} rows an epoch"
    )
    train_step = build.jit_train_step(
        config, objective, optimizer, abstract_state, mesh, stage.first_step
    )
    return Part(stage, batches, objective.heads, evaluation, train_step)


def train_part(
    part: Part,
    state: TrainState,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    profiler: Profiler,
    budget: Budget,
    unlogged: Sums,
    mesh: Mesh,
) -> Outcome:
    """Trains a stage from where the state is to its end; see `train`."""
    config, first_step = part.stage.config, int(state.step)
    numpy_batches = prefetch(part.batches, first_step - part.stage.first_step, config.steps)

    def budgeted_step(state, batch):
        return part.train_step(state, batch, budget.steps)

    return train(
        state,
        budgeted_step if config.budget_hours else part.train_step,
        (build.put_batch(batch, mesh) for batch in numpy_batches),
        lambda state: part.evaluation(state.params),
        checkpoints,
        writer,
        profiler,
        heads=part.heads,
        first_step=first_step,
        steps=part.stage.last_step,
        log_every=config.log_every,
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        flops_per_token=build.flops_per_row(config) / config.data.max_seq_length,
        peak_flops=peak_flops(mesh.devices),
        budget=budget,
        target_mlm_accuracy=config.target_mlm_accuracy,
        unlogged=unlogged,
    )


def is_over(config: Config, done: int, budget: Budget, mlm_accuracy: float) -> str:
    """Why a run need not do all its steps; empty where it must.

    Args:
      config: of the run.
      done: steps so far.
      budget: of the run.
      mlm_accuracy: of the last evaluation.
    """
    if 0 < config.target_mlm_accuracy <= mlm_accuracy:
        rows = sum(
            (min(done, stage.last_step) - stage.first_step) * stage.config.data.batch_size
            for stage in config.stages()
            if stage.first_step < done
        )
        reached = f"masked LM accuracy {mlm_accuracy:.4f} reached in {rows:,} rows"
        if not config.target_rows:
            return reached
        ratio = rows / config.target_rows
        return f"{reached}, {ratio:.2f} times the {config.target_rows:,} of the reference"
    if config.budget_hours and done >= budget.steps:
        return f"the {config.budget_hours:g} hours of the budget are over"
    return ""


def check_can_go_on(workdir: epath.Path, config: Config, store: build.AnyStore) -> None:
    """Checks that the workdir is new, or that its run can go on with this config and store.

    Raises:
      UserError: see `check_workdir`; or the run has more steps already.
    """
    step = latest_step(workdir)
    # A phase that has not begun may change, too.
    later = (s.name for s in config.stages() if s.name and s.first_step >= (step or 0))
    check_workdir(
        workdir,
        config.to_dict(),
        identity(store),
        free=(*FREE_TO_CHANGE, *later),
        read=lambda path: read_config(path).to_dict(),
    )
    if step is not None and step > config.steps:
        raise UserError(
            f"config.steps={config.steps}, but {workdir} has {step} steps already: "
            f"choose another --workdir or more steps"
        )


def identity(store: build.AnyStore) -> dict[str, str]:
    """What tells the data of a run from other data."""
    return {"store_fingerprint": store.fingerprint}


def peak_flops(devices: np.ndarray) -> float | None:
    """FLOP/s of all devices together; None where it is not known."""
    peak = peak_flops_per_device(devices.flat[0].device_kind)
    return None if peak is None else peak * devices.size

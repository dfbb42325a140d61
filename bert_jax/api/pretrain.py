"""Pretrains BERT: masked LM and next sentence prediction on a token store."""

import functools
from collections.abc import Sequence
from typing import Any

from etils import epath

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.batch_sizes import BatchSizes
from bert_jax.data.stores import Store
from bert_jax.interop.initial import initial_params
from bert_jax.interop.teachers import Teachers
from bert_jax.parallel import hosts
from bert_jax.pretraining.data import configured_stores, going_on, identities, passed_before
from bert_jax.pretraining.parts import Part, check_shapes, describe
from bert_jax.pretraining.resuming import (
    check_can_go_on,
    check_origin,
    check_same,
    other_origin,
    passed_at_origin,
    with_origin,
)
from bert_jax.pretraining.stages import saved_parts, trained_parts
from bert_jax.report.live import draw_run
from bert_jax.terminal import is_quiet
from bert_jax.train.budget import Budget
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.checksums import weights_fingerprint
from bert_jax.train.hooks import Evaluate, Target, save
from bert_jax.train.metrics import MetricsWriter
from bert_jax.train.profiling import Profiler
from bert_jax.train.run import Origin, parse_origin
from bert_jax.train.starts import record_start
from bert_jax.train.trackers import check_trackers
from bert_jax.train.trainer import Trainer
from bert_jax.train.workdirs import (
    FIRST_ROW,
    PASSED,
    WEIGHTS,
    claim_workdir,
    held,
    start_of,
    way_back,
)


def pretrain(config: PretrainConfig, workdir: epath.PathLike) -> bool:
    """Trains until the steps, the budget or the target ends the run, or a signal stops it.

    Args:
      config: configuration of the run.
      workdir: directory for checkpoints, metrics and curves; a run that is in it is resumed.

    Returns:
      True: the run is over. False: a signal stopped it and everything is saved.

    Raises:
      UserError: config, store and workdir do not fit together, or the processes differ.
      TrainingDiverged: a gradient is not finite, or an update destroys the parameters.
    """
    workdir = epath.Path(workdir)
    with hosts.agreement():
        check_trackers(config.trackers)
        config = with_origin(config, workdir)
        stores = configured_stores(config)
        teachers = Teachers(config, stores[0].tokenizer)
    check_same(config, identities(config, stores) | teachers.fingerprints)
    hosts.check_shared(workdir)
    with held(workdir):
        return train(config, workdir, stores, teachers)


def train(
    config: PretrainConfig, workdir: epath.Path, stores: Sequence[Store], teachers: Teachers
) -> bool:
    """Begins or resumes the run in a workdir that is held; see `pretrain`."""
    store, data = stores[0], identities(config, stores) | teachers.fingerprints
    with hosts.agreement():
        done = check_can_go_on(workdir, config, store, data)
    origin = parse_origin(config.branch_from) if done is None else Origin("", None)
    initial: dict[str, Any] = {}
    started: dict[str, Any] = {} if done is None else start_of(workdir)
    if origin.workdir:
        with hosts.agreement():
            started = {FIRST_ROW: check_origin(config, store, teachers)}
            if passed := passed_at_origin(config, started[FIRST_ROW] > 0):
                started[PASSED] = passed
        with other_origin(origin):
            model_parts = saved_parts(epath.Path(origin.workdir), config.first_step)
    elif done is None:
        model_parts = trained_parts(config, store)
    else:
        with way_back(config.resume_from):
            model_parts = saved_parts(workdir, done)
    if config.init_from and done is None and not origin.workdir:
        with hosts.agreement():
            initial, lines = initial_params(config, store.tokenizer, model_parts)
        started = {WEIGHTS: weights_fingerprint(initial)}
        for line in lines:
            hosts.print_once(line)
    left = [
        (stage, store)
        for stage, store in zip(config.stages(), stores)
        if stage.last_step > (done or 0)
    ]
    if not left:
        hosts.print_once(f"{workdir} has all its {done} steps: nothing to train", result=True)
        draw(workdir)
        return True
    # Build all stages now, so that a mistake in the last one fails before the first is trained.
    passed = passed_before(config, stores, left[0][0].first_step, started)
    parts: list[Part] = []
    for stage, store in left:
        first_row = started.get(FIRST_ROW, 0) * (stage.first_step == config.first_step)
        data_left = going_on(store, passed)
        parts.append(Part.build(stage, data_left, model_parts, teachers, first_row))
        with stage.errors():
            passed |= parts[-1].stream.passes(stage.config.steps)
    check_shapes(parts)
    describe(parts)

    progress: dict[str, Any] = {}
    if origin.workdir:
        with other_origin(origin), Checkpoints(origin.workdir, read_only=True) as saved:
            state, progress = saved.restore(parts[0].program.abstract_state, origin.step)
        progress = {name: progress[name] for name in ("unlogged",) if name in progress}
        hosts.print_once(f"branching from {origin}")
    elif done is None:
        state = parts[0].initial_state(config.seed, initial)
    else:
        with way_back(config.resume_from), Checkpoints(workdir, read_only=True) as saved:
            state, progress = saved.restore(parts[0].program.abstract_state, done)
        hosts.print_once(f"resuming at step {done}")
    with hosts.agreement():
        if hosts.is_primary():
            claim_workdir(workdir, config.to_dict(), data | started, store.tokenizer)
            record_start(workdir, done or config.first_step)
    with Checkpoints(workdir, keep=config.keep_checkpoints, last=done or 0) as checkpoints:
        trainer = Trainer(state, checkpoints, progress)
        budget = Budget(config.last_step, config.budget_hours, progress)
        target = Target("mlm_accuracy", config.target_mlm_accuracy, progress)
        trainer.stop_by(budget)
        trainer.carry(target.progress)
        if over := is_over(config, trainer.done, budget, target):
            hosts.print_once(f"{workdir}: {over}: nothing to train", result=True)
            draw(workdir)
            return True

        with (
            MetricsWriter(
                workdir,
                trainer.done,
                anew=done is None,
                trackers=config.trackers,
                config=config.to_dict(),
            ) as writer,
            Profiler(workdir / "profile") as trace,
        ):
            if origin.workdir:
                writer.write_origin(trainer.done, origin.workdir)
            for part in parts:
                if trainer.done == part.stage.first_step:
                    baselines = part.heldout.baselines()
                    if part.suites:
                        baselines |= part.suites.baselines()
                    writer.write(trainer.done, "baseline", baselines)
                trainer.state = part.program.place(trainer.state)
                trainer.report_every(config.log_every, part.log(writer))
                heldout = Evaluate(part.heldout, writer, [target], params=part.trained)
                trainer.every(config.eval_every, heldout)
                if part.stage.config.optimizer.ema_decay:
                    ema = functools.partial(part.trained, member="ema")
                    scored = Evaluate(part.heldout, writer, split="heldout_ema", params=ema)
                    trainer.every(config.eval_every, scored)
                if part.suites:
                    scores = Evaluate(part.suites, writer, split="suites", params=part.trained)
                    trainer.every(config.eval_suites_every or config.eval_every, scores)
                trainer.every(config.checkpoint_every, save, when_stopped=True)
                trainer.after_every_step(trace.after_step)
                trainer.stop_when(target.reached)
                trainer.fit(part.step(budget), part.batches(trainer.done), part.stage.last_step)
                over = is_over(config, trainer.done, budget, target)
                if trainer.stopped_by or over:
                    break
    draw(workdir)
    if is_quiet() and heldout.line:  # else it is there already
        hosts.print_once(heldout.line, result=True)
    if over:
        hosts.print_once(over, result=True)
    elif trainer.stopped_by and trainer.done < config.last_step:
        signal = trainer.stopped_by.name
        hosts.print_once(f"{signal}: saved at step {trainer.done}; run again to go on", result=True)
        return False
    return True


def draw(workdir: epath.Path) -> None:
    """Draws the curves of a run; also of one that is over, which may have been killed before."""
    if hosts.is_primary():
        draw_run(workdir)


def is_over(config: PretrainConfig, done: int, budget: Budget, target: Target) -> str:
    """Why the run ends before its last step; empty if it does not.

    Args:
      config: configuration of the run.
      done: steps so far.
      budget: time budget of the run.
      target: accuracy at which the run ends.
    """
    if target.reached():
        rows = sum(
            BatchSizes(stage.config.data).first_row(min(done, stage.last_step) - stage.first_step)
            for stage in config.stages()
            if stage.first_step < done
        )
        reached = f"masked LM accuracy {target.value:.4f} reached in {rows:,} rows"
        if not config.target_rows:
            return reached
        ratio = rows / config.target_rows
        return f"{reached}, {ratio:.2f} times the {config.target_rows:,} of the reference"
    if config.budget_hours and done >= budget.steps:
        return f"the {config.budget_hours:g} hours of the budget are over"
    return ""

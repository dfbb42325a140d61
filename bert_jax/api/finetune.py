"""Fine-tunes a trained BERT on a task, such as classification, tagging or generation."""

import dataclasses
import functools
from typing import Any

from etils import epath

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.overrides import differences
from bert_jax.errors import UserError
from bert_jax.fields import to_plain
from bert_jax.finetuning.data import device_batches, fingerprint, read_data, training_batches
from bert_jax.finetuning.description import free_to_change, saved_description
from bert_jax.finetuning.results import report, summarize_seeds
from bert_jax.finetuning.setup import Setup
from bert_jax.finetuning.weights import initial_state, read_task_teacher
from bert_jax.interop.initial import (
    read_initial,
)
from bert_jax.interop.teachers import FINGERPRINT
from bert_jax.model.parameters import Params
from bert_jax.parallel import cpu, hosts
from bert_jax.tasks.protocol import settings
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.checksums import weights_fingerprint
from bert_jax.train.hooks import Evaluate, KeepBest, Log, Patience, save
from bert_jax.train.metrics import MetricsWriter
from bert_jax.train.profiling import Profiler
from bert_jax.train.starts import record_start
from bert_jax.train.state import TrainState
from bert_jax.train.trackers import check_trackers
from bert_jax.train.trainer import Trainer
from bert_jax.train.workdirs import (
    WEIGHTS,
    check_same_run,
    claim_workdir,
    has_run,
    held,
    start_of,
    starting_step,
    way_back,
)

FROZEN = "frozen_weights"  # in data.json: fingerprint of what LoRA leaves as it is


def finetune(config: FinetuneConfig, workdir: epath.PathLike) -> bool:
    """Trains once, or once for each seed in its own subdirectory.

    Args:
      config: configuration of the run.
      workdir: directory for checkpoints, metrics, results and predictions; a run that is in it is
        resumed.

    Returns:
      True: the run is over. False: a signal stopped it and everything is saved.

    Raises:
      UserError: config, model, data and workdir do not fit together.
    """
    workdir = epath.Path(workdir)
    with hosts.agreement():
        check_trackers(config.trackers)
        source = read_initial(config, report=hosts.print_once)
        task, data = read_data(config, source)
        teacher = read_task_teacher(config, source, task, data)
    hosts.check_shared(workdir)
    for name, (examples, features, _) in data.items():
        counts = ", ".join(f"{count:,} {what}" for what, count in features.counts.items() if count)
        hosts.print_once(f"{name}: {len(examples):,} examples ({counts})")
    cpu.advise(config.numerics.compute_dtype)
    setup = Setup.build(config, source, task, data, teacher)
    if config.seeds == 1:
        return train_once(config, workdir, setup)
    if config.resume_from >= 0:
        raise UserError(
            f"config.resume_from={config.resume_from} goes back with one seed: give "
            f"--workdir={workdir}/seed{config.seed} --config.seed={config.seed} --config.seeds=1"
        )
    runs = {
        workdir / f"seed{seed}": dataclasses.replace(config, seed=seed, seeds=1)
        for seed in range(config.seed, config.seed + config.seeds)
    }
    for run, one in runs.items():
        hosts.print_once(f"seed {one.seed}")
        if not train_once(one, run, setup):
            return False
    if hosts.is_primary():
        summarize_seeds(workdir, runs)
    return True


def train_once(config: FinetuneConfig, workdir: epath.Path, setup: Setup) -> bool:
    """Trains with one seed, then scores the best checkpoint; False if a signal stopped it."""
    with held(workdir):
        return train(config, workdir, setup)


def train(config: FinetuneConfig, workdir: epath.Path, setup: Setup) -> bool:
    """Begins or resumes the run in a workdir that is held; see `train_once`."""
    task, data, program = setup.task, setup.data, setup.program
    description = setup.description(config)
    identity = {split: fingerprint(examples.features) for split, examples in data.items()}
    if setup.teacher_weights:
        identity[FINGERPRINT] = setup.teacher_weights

    @functools.cache
    def weights() -> str:
        return weights_fingerprint(setup.source.params)

    if config.lora_rank:  # the run reads them at every start
        identity[FROZEN] = weights()

    with hosts.agreement():
        saved = saved_description(workdir) if has_run(workdir) else None
        done = starting_step(workdir, saved, description, config.resume_from)
        if saved is not None:
            changed = differences(saved, description)
            check_same_run(workdir, changed, identity, weights, free_to_change(config))
        started = {WEIGHTS: weights()} if done is None else start_of(workdir)
    progress: dict[str, Any] = {}
    if done is None:
        state = initial_state(config, setup)
    else:
        with way_back(config.resume_from), Checkpoints(workdir, read_only=True) as old:
            state, progress = old.restore(program.abstract_state, done)
        state = program.place(state)
        hosts.print_once(f"resuming at step {done}")
    with hosts.agreement():
        if hosts.is_primary():
            described = description | {"task": settings(to_plain(task))}
            if task.head.problem_type:
                described |= {"problem_type": task.head.problem_type}
            for directory in (workdir, workdir / "best"):
                claim_workdir(directory, described, identity | started, setup.source.tokenizer)
            record_start(workdir, done or 0)

    features = data["train"].features
    batches = training_batches(config, setup.source.tokenizer, task, features, setup.mesh)
    baseline = task.baseline(data["train"].examples, data["dev"].examples)
    with (
        # Two of both, to go back once: the best before the last evaluation is then still there.
        Checkpoints(workdir, keep=2, last=done or 0) as checkpoints,
        Checkpoints(workdir / "best", keep=2, last=done or 0) as best,
        MetricsWriter(
            workdir, done or 0, trackers=config.trackers, config=config.to_dict()
        ) as writer,
        Profiler(workdir / "profile") as profiler,
    ):
        if done is None:
            writer.write(0, "baseline", baseline)
        trainer = Trainer(state, checkpoints, progress)
        metric = task.best_by or next(iter(baseline))

        def params(state: TrainState) -> Params:
            return setup.whole(state.averaged)

        keep_best = KeepBest(best, metric, workdir, params)
        patience = Patience(metric, config.patience, workdir, done or 0)
        evaluate = Evaluate(
            lambda params: setup.scores["dev"](params, quick=True).metrics,
            writer,
            [keep_best, patience],
            params=params,
        )
        every = max(1, batches.steps_per_epoch // config.evals_per_epoch)
        trainer.report_every(
            config.log_every, Log(writer, setup.objective.heads, setup.objective.factors)
        )
        trainer.every(every, evaluate)
        trainer.every(every, save, when_stopped=True)
        trainer.after_every_step(profiler.after_step)
        trainer.stop_when(patience.ended)
        key = program.dropout_key(config.seed)
        trainer.fit(
            lambda state, batch: program.step(state, batch, key),
            device_batches(batches, trainer.done, setup.steps, setup.mesh),
            setup.steps,
        )
        if trainer.done < setup.steps and patience.ended():
            hosts.print_once(
                f"step {trainer.done}: {metric} has not become better for {config.patience} "
                "evaluations (config.patience)"
            )
        elif trainer.done < setup.steps:
            assert trainer.stopped_by is not None  # nothing else ends it early
            signal = trainer.stopped_by.name
            hosts.print_once(
                f"{signal}: saved at step {trainer.done}; run again to go on", result=True
            )
            return False
    report(workdir, setup)
    return True

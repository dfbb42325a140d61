"""Fine-tunes a trained BERT on a task, such as classification, tagging or generation."""

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.overrides import differences
from bert_jax.config.saved import read_finetune_config, read_model_config
from bert_jax.data.batches import prefetch
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.evaluation.task_scores import Examples, TaskScores
from bert_jax.fields import Plain, resumable, to_plain
from bert_jax.interop.initial import (
    read_initial,
    replace_params,
    with_parts_only,
    without_parts,
)
from bert_jax.interop.portable import Portable
from bert_jax.interop.teachers import FINGERPRINT, read_teacher
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.decoder import with_decoder
from bert_jax.model.heads import (
    DECODER,
    HEADS,
    MASKED_LM,
    MULTI_LABEL_CLASSIFIER,
    WRITING,
    parts_of,
)
from bert_jax.model.lora import LowRank, frozen_params, model_with_factors
from bert_jax.model.model import Model, build_model
from bert_jax.model.parameters import Axes, Params, joined
from bert_jax.model.teacher import TEACHER, model_with_teacher
from bert_jax.objective.finetuning import FineTuning
from bert_jax.parallel import cpu, hosts, rules
from bert_jax.parallel.mesh import check_divides, row_devices
from bert_jax.parallel.parallelism import check_attention, parallelism
from bert_jax.report.confusion import draw_confusion
from bert_jax.report.live import draw_run
from bert_jax.report.metrics_file import finite
from bert_jax.report.reliability import draw_reliability
from bert_jax.report.units import listed, shown
from bert_jax.storage import read_json, write_json
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.classification.calibration import Calibration, calibration, fitted_temperature
from bert_jax.tasks.features import Features, check_token_types
from bert_jax.tasks.protocol import AnyTask, settings
from bert_jax.train.checkpoints import Checkpoints, DamagedCheckpoint, saved_steps
from bert_jax.train.checksums import weights_fingerprint
from bert_jax.train.hooks import Evaluate, KeepBest, Log, Patience, save
from bert_jax.train.metrics import MetricsWriter
from bert_jax.train.optimizers import scale_by_depth
from bert_jax.train.profiling import Profiler
from bert_jax.train.program import Program
from bert_jax.train.starts import record_start
from bert_jax.train.state import TrainState
from bert_jax.train.step import Batch
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


def read_data(config: FinetuneConfig, source: Portable) -> tuple[AnyTask, dict[str, Examples]]:
    """The task with its labels, and the examples of each split.

    Raises:
      UserError: files cannot be read, or do not fit the task, the model or the config.
    """
    task = config.task
    positions = source.architecture.max_position_embeddings
    if task.max_seq_length > positions:
        raise UserError(
            f"config.task.max_seq_length={task.max_seq_length}, but {config.init_from} has "
            f"{positions} positions"
        )
    task.check_model("config.task", source.architecture)
    given = task.read(task.train)
    task = task.with_labels_of(given)
    splits = {"train": config.chosen(given)}
    splits["dev"] = config.held_out(given) if config.fold else task.read(task.dev)
    if not splits["dev"]:
        raise UserError(f"config.fold={config.fold}: {task.train} has only {len(given)} examples")
    if task.test:
        splits["test"] = task.read(task.test, labelled=task.test_labelled)
    data = {}
    for split, examples in splits.items():
        labelled = split != "test" or task.test_labelled
        features = task.features(examples, source.tokenizer, task.max_seq_length)
        check_token_types(features, source.architecture.type_vocab_size, source.tokenizer)
        data[split] = Examples(examples, features, labelled)
    if (count := len(data["train"].features.units)) < config.batch_size:
        few = f"config.max_examples={config.max_examples} of {task.train}"
        raise UserError(
            f"config.batch_size={config.batch_size}, but "
            f"{few if config.max_examples else task.train} has only {count} examples"
        )
    return task, data


def read_task_teacher(
    config: FinetuneConfig, source: Portable, task: AnyTask, data: Mapping[str, Examples]
) -> Portable | None:
    """The teacher, its outputs in the order of the task's classes; None if there is none.

    Raises:
      UserError: it cannot be read, or is no model of this task or of the vocabulary of `source`.
    """
    if not config.teacher:
        return None
    if task.head.part not in (*HEADS, *WRITING):
        raise UserError(
            f"config.teacher={config.teacher}: config.task={task.called()} compares vectors, which "
            "config.objective=distillation of `bert-jax pretrain` learns: set it to ''"
        )
    length = task.max_seq_length
    teacher = read_teacher("config.teacher", config.teacher, source.tokenizer, length)
    check_token_types(
        data["train"].features, teacher.architecture.type_vocab_size, source.tokenizer
    )
    head = head_by_names(teacher, task)
    wanted = task.head.parts(teacher.architecture)
    missing = [part for part in wanted if part not in parts_of(teacher.params)]
    outputs = task.num_labels or task.head.outputs
    if missing or head is None or (teacher.outputs and teacher.outputs != outputs):
        classes = f" of the classes {', '.join(task.label_names)}" if task.label_names else ""
        theirs = f", but of {', '.join(teacher.labels)}" if teacher.labels else ""
        raise UserError(
            f"config.teacher={config.teacher} is no model{classes} for "
            f"config.task={task.called()}{theirs}: fine-tune one on the same task"
        )
    params = with_parts_only(teacher.params, wanted)
    return teacher._replace(params=params | {task.head.part: head})


class Setup(NamedTuple):
    """What the runs of all seeds share.

    Attributes:
      source: trained model to start from.
      teacher_weights: fingerprint of the model to learn from; empty if there is none.
      task: task, with its labels.
      data: examples of each split.
      mesh: devices to compute on.
      model: structure of the model.
      objective: what it learns.
      program: training state and its compiled step.
      scores: evaluation of each split except train.
      steps: number of steps of a run.
      whole: gives the parameters of the model, from those that are trained.
    """

    source: Portable
    teacher_weights: str
    task: AnyTask
    data: Mapping[str, Examples]
    mesh: Mesh
    model: Model
    objective: FineTuning
    program: Program
    scores: Mapping[str, TaskScores]
    steps: int
    whole: Callable[[Params], Params]

    @classmethod
    def build(
        cls,
        config: FinetuneConfig,
        source: Portable,
        task: AnyTask,
        data: Mapping[str, Examples],
        teacher: Portable | None = None,
    ) -> "Setup":
        """Compiles at the first steps.

        Raises:
          UserError: devices cannot share the arrays of the model.
        """
        mesh = config.mesh.mesh()
        check_divides(mesh, source.architecture)
        check_attention(mesh, config.numerics)
        model = build_model(
            source.architecture,
            config.numerics,
            parallelism(mesh, config.numerics),
            parts=task.head.parts(source.architecture),
            outputs=task.num_labels,
        )
        batches = training_batches(config, source.tokenizer, task, data["train"].features, mesh)
        steps = math.ceil(config.epochs * batches.steps_per_epoch)
        optimizer = config.optimizer
        warmup_steps = optimizer.warmup_steps or round(config.warmup_share * steps)
        objective = FineTuning(
            model.graphdef, task.head, config.numerics.hidden_dropout, config.freeze
        )
        trained, frozen = model, {}
        if teacher:
            check_divides(mesh, teacher.architecture, "the teacher's ")
            trained = model_with_teacher(
                source.architecture,
                config.numerics,
                parallelism(mesh, config.numerics),
                parts=task.head.parts(source.architecture),
                outputs=task.num_labels,
                teacher=teacher.architecture,
                teacher_parts=task.head.parts(teacher.architecture),
            )
            frozen = rules.put_params(
                {TEACHER: teacher.params}, mesh, trained.axes, zero1=config.mesh.zero1
            )
            objective = dataclasses.replace(
                objective,
                graphdef=trained.graphdef,
                teacher_weight=config.teacher_weight,
                temperature=config.temperature,
            )
        whole: Callable[[Params], Params] = unchanged
        if config.lora_rank:
            lora = LowRank(config.lora_rank, config.lora_alpha, config.lora_matrices)
            trained = model_with_factors(
                source.architecture,
                config.numerics,
                parallelism(mesh, config.numerics),
                parts=task.head.parts(source.architecture),
                outputs=task.num_labels,
                lora=lora,
            )
            frozen = rules.put_params(
                frozen_params(source.params), mesh, trained.axes, zero1=config.mesh.zero1
            )
            objective = dataclasses.replace(objective, graphdef=trained.graphdef)
            whole = whole_model(lora, frozen, model, mesh)
        program = Program(
            config,
            objective,
            trained,
            transformation(config, trained.axes, source.architecture.num_layers),
            optimizer.schedule.rate(optimizer.learning_rate, warmup_steps, steps),
            mesh,
            frozen=frozen,
        )
        scores = {
            split: TaskScores(
                task,
                examples,
                model,
                config.numerics,
                mesh,
                tokenizer=source.tokenizer,
                batch_size=4 * config.batch_size,
                fit=split == "dev",
            )
            for split, examples in data.items()
            if split != "train"
        }
        weights = weights_fingerprint(teacher.params) if teacher else ""
        return cls(
            source, weights, task, data, mesh, model, objective, program, scores, steps, whole
        )

    def description(self, config: FinetuneConfig) -> Plain:
        """The part of a run's `config.json` that a resumed run is compared with."""
        labels = self.task.label_names
        return describe(config, self.source.architecture, config.numerics, labels)


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


def unchanged(params: Params) -> Params:
    """Returns its argument: all parameters of the model are trained."""
    return params


def whole_model(
    lora: LowRank, frozen: Params, model: Model, mesh: Mesh
) -> Callable[[Params], Params]:
    """Builds the function from what LoRA trains to the parameters of the model.

    Args:
      lora: what is adapted.
      frozen: parameters that are not trained, on the mesh.
      model: the model, without factors.
      mesh: mesh that it is laid out on.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = rules.state_shardings(mesh, shapes, model.axes, zero1=False)
    merge = jax.jit(
        lambda params, frozen: lora.merged(joined(params, frozen)), out_shardings=shardings
    )
    return lambda params: merge(params, frozen)


def training_batches(
    config: FinetuneConfig, tokenizer: Tokenizer, task: AnyTask, features: Features, mesh: Mesh
) -> ExampleBatches:
    """This host's rows of every training batch."""
    sharding = rules.batch_sharding(mesh)
    return ExampleBatches(
        features,
        task.head,
        pad_id=tokenizer.pad_id,
        batch_size=config.batch_size,
        seed=config.seed,
        packing=config.packing,
        row_multiple=row_devices(mesh) * config.optimizer.gradient_accumulation,
        host_rows=lambda num_rows: hosts.local_rows(sharding, num_rows),
    )


def device_batches(
    batches: ExampleBatches, first_step: int, steps: int, mesh: Mesh
) -> Iterator[Batch]:
    """The batches of the remaining steps, on the mesh."""
    return (rules.put_batch(batch, mesh) for batch in prefetch(batches, first_step, steps))


def transformation(
    config: FinetuneConfig, axes: Axes, num_layers: int
) -> optax.GradientTransformation:
    """The optimizer, with `config.layer_decay` over the layers and `config.freeze` applied."""
    optimizer = config.optimizer.transformation(axes)
    if config.layer_decay == 1 and not config.freeze:
        return optimizer
    return optax.chain(optimizer, scale_by_depth(num_layers, config.layer_decay, config.freeze))


def initial_state(config: FinetuneConfig, setup: Setup) -> TrainState:
    """The state with the trained weights; new parts start at random."""
    source, task, mesh = setup.source, setup.task, setup.mesh
    state = setup.program.init(jax.random.key(config.seed))
    if config.random_weights:
        return state
    wanted = parts_of(state.params)
    if DECODER in wanted and DECODER not in source.params:
        source = source._replace(params=with_decoder(source.params))
        lacks = MASKED_LM.part not in source.params[DECODER]
        lost = f", but its {MASKED_LM.part} at random" if lacks else ""
        hosts.print_once(f"{DECODER}: starts as a copy of {config.init_from}{lost}")
    found = parts_of(source.params)
    unused = {part for part in found if part not in wanted}
    head = head_by_names(source, task)
    if head is None:
        unused |= {task.head.part} & set(found)  # its classes are other ones
    elif source.labels != task.label_names:
        hosts.print_once(f"taken over by the names of its classes: {task.head.part}")
    if config.reinit_layers:
        unused |= {"pooler"} & set(found)
    fresh = [part for part in wanted if part not in found or part in unused]
    given = without_parts(source.params, unused)
    is_transform = source.architecture.pooler == "transform" and not config.reinit_layers
    if is_transform and "masked_lm" in found and "pooler" not in found:
        # As in transformers, where both have the same name.
        given["bert"] |= {"pooler": {n: source.params["masked_lm"][n] for n in ("dense", "norm")}}
        fresh = [part for part in fresh if part != "pooler"]
    if fresh:
        hosts.print_once(f"starts at random: {', '.join(fresh)}")
    if unused:
        hosts.print_once(f"not used from {config.init_from}: {', '.join(sorted(unused))}")
    if head is not None:
        given |= {task.head.part: head}
    given = rules.put_params(given, mesh, setup.model.axes, zero1=config.mesh.zero1)
    params = replace_params(state.params, given)
    if config.reinit_layers:
        params = reinit_layers(params, state.params, config.reinit_layers)
    return setup.program.place(dataclasses.replace(state, params=params, ema=None))


def head_by_names(source: Portable, task: AnyTask) -> Params | None:
    """The parameters of a model's head for a task, its outputs in the order of the task's classes.

    None if the model has no such head, or if its outputs do not mean these classes.
    """
    found, wanted = source.labels, task.label_names
    several = MULTI_LABEL_CLASSIFIER.problem_type
    other_meaning = (source.problem_type == several) != (task.head.problem_type == several)
    if task.head.part not in source.params or sorted(found) != sorted(wanted) or other_meaning:
        return None
    head: Params = source.params[task.head.part]
    if found == wanted:
        return head
    order = [found.index(label) for label in wanted]
    return {name: values[..., order] for name, values in head.items()}


def reinit_layers(params: Params, fresh: Params, num_layers: int) -> Params:
    """`params` with the top `num_layers` layers of `fresh`."""

    @jax.jit
    def mix(given: jax.Array, fresh: jax.Array) -> jax.Array:
        layer = jnp.arange(len(given)).reshape(-1, *[1] * (given.ndim - 1))
        return jnp.where(layer < len(given) - num_layers, given, fresh)

    layers = [tree["bert"]["encoder"]["layers"] for tree in (params, fresh)]
    encoder = {"encoder": {"layers": jax.tree.map(mix, *layers)}}
    return params | {"bert": params["bert"] | encoder}


def saved_description(workdir: epath.Path) -> Plain:
    """The `config.json` of a run of any version, in the form of `describe`."""
    path = workdir / "config.json"
    return describe(read_finetune_config(path), *read_model_config(path))


def describe(
    config: FinetuneConfig, architecture: Architecture, numerics: Numerics, labels: tuple[str, ...]
) -> Plain:
    """The content of a run's `config.json`, from which `read_model_config` reads the model."""
    return {
        "finetune": config.to_dict(),
        "model": to_plain(architecture),
        "numerics": to_plain(numerics),
        "labels": list(labels),
    }


def free_to_change(config: FinetuneConfig) -> list[str]:
    """Prefixes "field:" of what a resumed run may change: how it computes and reports.

    What it learns may not change; nor, since runs are short, may the fields of the optimizer,
    unless the run goes back.
    """
    free = [*resumable(config, "finetune."), *resumable(config.numerics, "numerics.")]
    if config.teacher:
        free.append("finetune.teacher:")  # it is known by its weights
    if config.resume_from >= 0:
        return [*free, "finetune.warmup_share:"]
    return [field for field in free if not field.startswith("finetune.optimizer.")]


def report(workdir: epath.Path, setup: Setup) -> None:
    """Scores the best checkpoint and writes results, predictions and curves."""
    task, data = setup.task, setup.data
    with Checkpoints(workdir / "best", read_only=True) as best:
        try:
            stored, step = best.read_params()
        except DamagedCheckpoint as error:
            back = max((step for step in saved_steps(workdir) if step < error.step), default=0)
            raise UserError(
                f"{error.fact}: train it again with --config.resume_from={back}"
            ) from error
    params = rules.put_params(stored, setup.mesh, setup.model.axes)
    results: dict[str, Any] = {"step": step}
    matrices: dict[str, np.ndarray] = {}
    calibrations: dict[str, dict[str, Calibration]] = {}
    temperature = 1.0
    for split in ("dev", "test"):
        if split not in data:
            continue
        examples = data[split].examples
        metrics, predictions, logits, task = setup.scores[split](params, task)
        if split == "dev" and task != setup.task and hosts.is_primary():
            keep_fitted(workdir, setup.task, task)
        if hosts.is_primary():
            name = task.submission_name(getattr(task, split))
            name = name or f"{split}_predictions{task.predictions_suffix}"
            task.write_predictions(workdir / name, examples, predictions)
        if not data[split].labelled:
            continue
        baseline = task.baseline(data["train"].examples, examples)
        results[split] = {"metrics": finite(metrics), "baseline": finite(baseline)}
        hosts.print_once(f"{split} at step {step}: {listed(metrics)}", result=True)
        if baseline:
            hosts.print_once(f"{split} baseline: {listed(baseline)}", result=True)
        if not task.label_names:
            continue
        classes = results[split]["classes"] = task.per_class(predictions, examples)
        for row in classes:
            numbers = "  ".join(f"{name} {row[name]:.1%}" for name in ("precision", "recall", "f1"))
            line = f"{split} {row['label']}: {numbers}  support {row['support']:,}"
            hosts.print_once(line, result=True)
        matrix = task.confusion_matrix(predictions, examples)
        if matrix is not None:
            results[split]["confusion"] = matrix.tolist()
            matrices[split] = matrix
        true = task.true_classes(examples)
        if true is None:
            continue
        outputs, true = np.stack(logits)[true >= 0], true[true >= 0]
        if split == "dev":
            temperature = fitted_temperature(outputs, true)
        before, after = (calibration(outputs, true, t) for t in (1.0, temperature))
        calibrations[split] = {"as they are": before, f"logits / {temperature:.3g}": after}
        results[split]["calibration"] = {
            "ece": before.ece,
            "temperature": temperature,
            "ece_at_temperature": after.ece,
            "loss_at_temperature": after.nll,
        }
        hosts.print_once(
            f"{split} calibration error {before.ece:.1%}, with logits divided by "
            f"{temperature:.3g} (fitted on dev) {after.ece:.1%}",
            result=True,
        )
    if hosts.is_primary():
        write_json(workdir / "results.json", results)
        # Pictures come last: nothing that they need can then be lost.
        for split, found in matrices.items():
            draw_confusion(found, task.label_names, workdir / f"{split}_confusion.png")
        for split, both in calibrations.items():
            draw_reliability(both, workdir / f"{split}_calibration.png")
        draw_run(workdir)


def keep_fitted(workdir: epath.Path, task: AnyTask, fitted: AnyTask) -> None:
    """Prints what a task has fitted to the best model, and notes it beside run and model."""
    before, after = (settings(to_plain(each)) for each in (task, fitted))
    for name, value in after.items():
        if value != before[name]:
            hosts.print_here(f"{name}, fitted on dev: {', '.join(map(str, value))}")
    for directory in (workdir, workdir / "best"):
        described = read_json(directory / "config.json")
        write_json(directory / "config.json", described | {"task": after})


def summarize_seeds(workdir: epath.Path, runs: Iterable[epath.Path]) -> None:
    """Writes and prints median, mean and standard deviation of every metric over the runs."""
    results = [read_json(run / "results.json") for run in runs]
    summary: dict[str, Any] = {}
    for split in ("dev", "test"):
        if split not in results[0]:
            continue
        for name in results[0][split]["metrics"]:
            if not all(name in result[split]["metrics"] for result in results):
                continue  # not a finite number for every seed
            values = [result[split]["metrics"][name] for result in results]
            numbers = {
                "median": statistics.median(values),
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values),
            }
            summary.setdefault(split, {})[name] = numbers | {"values": values}
            spread = "  ".join(f"{what} {shown(name, x)}" for what, x in numbers.items())
            line = f"{split} {name}, {len(values)} seeds: {spread}"
            hosts.print_here(line, result=True)
    write_json(workdir / "results.json", summary)


def fingerprint(features: Features) -> str:
    """sha256 of the tokens and labels of examples."""
    digest = hashlib.sha256()
    labels = features.labels if isinstance(features.labels, list) else [features.labels]
    for array in (*features.input_ids, features.b_start, *labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

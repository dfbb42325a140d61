"""Pretrains BERT: masked LM and next sentence prediction on a token store."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from bert_jax.config.overrides import differences
from bert_jax.config.pretraining import PretrainConfig, Stage
from bert_jax.config.saved import read_pretrain_config
from bert_jax.data.batches import BatchStream, prefetch
from bert_jax.data.sampling import Usage
from bert_jax.data.stores import Store, open_store
from bert_jax.data.suites import suite_name
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.evaluation.heldout import HeldOut, bound_objective
from bert_jax.evaluation.suite_scores import SuiteScores, exact
from bert_jax.evaluation.suites import open_suite
from bert_jax.fields import resumable
from bert_jax.interop.initial import initial_params, replace_params, without_parts
from bert_jax.model.heads import MASKED_LM, parts_of
from bert_jax.model.model import Model, build_model
from bert_jax.objective.protocol import BoundObjective
from bert_jax.parallel import cpu, hosts, rules
from bert_jax.parallel.mesh import check_divides, row_devices
from bert_jax.parallel.parallelism import parallelism
from bert_jax.report.flops import peak_flops, pretraining_flops_per_example
from bert_jax.report.live import draw_run
from bert_jax.train.budget import Budget
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.checksums import weights_fingerprint
from bert_jax.train.hooks import Evaluate, Log, Target, save
from bert_jax.train.metrics import MetricsWriter
from bert_jax.train.profiling import Profiler
from bert_jax.train.program import Program
from bert_jax.train.schedules import Rate
from bert_jax.train.state import TrainState, num_params
from bert_jax.train.step import Batch, Metrics
from bert_jax.train.trainer import Trainer
from bert_jax.train.workdirs import (
    WEIGHTS,
    check_same_run,
    claim_workdir,
    first_weights,
    has_run,
    held,
    starting_step,
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
        store = configured_store(config)
    check_same(config, store)
    hosts.check_shared(workdir)
    with held(workdir):
        return train(config, workdir, store)


def train(config: PretrainConfig, workdir: epath.Path, store: Store) -> bool:
    """Begins or resumes the run in a workdir that is held; see `pretrain`."""
    with hosts.agreement():
        done = check_can_go_on(workdir, config, store)
    with way_back(config.resume_from):
        model_parts = trained_parts(config, store) if done is None else saved_parts(workdir, done)
    initial: dict[str, Any] = {}
    started = {} if done is None else first_weights(workdir)
    if config.init_from and done is None:
        with hosts.agreement():
            initial, lines = initial_params(config, store.tokenizer, model_parts)
        started = {WEIGHTS: weights_fingerprint(initial)}
        for line in lines:
            hosts.print_once(line)
    stages = [stage for stage in config.stages() if stage.last_step > (done or 0)]
    if not stages:
        hosts.print_once(f"{workdir} has all its {done} steps: nothing to train")
        draw(workdir)
        return True
    # Build all stages now, so that a mistake in the last one fails before the first is trained.
    parts = [Part.build(stage, store, model_parts) for stage in stages]
    check_shapes(parts)
    describe(parts, store)

    progress: dict[str, Any] = {}
    if done is None:
        state = parts[0].initial_state(config.seed, initial)
    else:
        with way_back(config.resume_from), Checkpoints(workdir, read_only=True) as saved:
            state, progress = saved.restore(parts[0].program.abstract_state, done)
        hosts.print_once(f"resuming at step {done}")
    with hosts.agreement():
        if hosts.is_primary():
            claim_workdir(workdir, config.to_dict(), identity(store) | started, store.tokenizer)
    with Checkpoints(workdir, keep=config.keep_checkpoints, last=done or 0) as checkpoints:
        trainer = Trainer(state, checkpoints, progress)
        budget = Budget(config.steps, config.budget_hours, progress)
        target = Target("mlm_accuracy", config.target_mlm_accuracy, progress)
        trainer.stop_by(budget)
        trainer.carry(target.progress)
        if over := is_over(config, trainer.done, budget, target):
            hosts.print_once(f"{workdir}: {over}: nothing to train")
            draw(workdir)
            return True

        with MetricsWriter(workdir, trainer.done) as writer, Profiler(workdir / "profile") as trace:
            for part in parts:
                if trainer.done == part.stage.first_step:
                    baselines = part.heldout.baselines()
                    if part.suites:
                        baselines |= part.suites.baselines()
                    writer.write(trainer.done, "baseline", baselines)
                trainer.state = part.place(trainer.state)
                trainer.report_every(config.log_every, part.log(writer))
                trainer.every(config.eval_every, Evaluate(part.heldout, writer, [target]))
                if part.suites:
                    scores = Evaluate(part.suites, writer, split="suites")
                    trainer.every(config.eval_suites_every or config.eval_every, scores)
                trainer.every(config.checkpoint_every, save, when_stopped=True)
                trainer.after_every_step(trace.after_step)
                trainer.stop_when(target.reached)
                trainer.fit(part.step(budget), part.batches(trainer.done), part.stage.last_step)
                over = is_over(config, trainer.done, budget, target)
                if trainer.stopped_by or over:
                    break
    draw(workdir)
    if over:
        hosts.print_once(over)
    elif trainer.stopped_by and trainer.done < config.steps:
        signal = trainer.stopped_by.name
        hosts.print_once(f"{signal}: saved at step {trainer.done}; run again to go on")
        return False
    return True


def draw(workdir: epath.Path) -> None:
    """Draws the curves of a run; also of one that is over, which may have been killed before."""
    if hosts.is_primary():
        draw_run(workdir)


class Part(NamedTuple):
    """The objects that train one stage of a run.

    Attributes:
      stage: stage to train.
      mesh: devices to compute on.
      model: structure of the model.
      program: training state and step.
      objective: what the model learns.
      stream: this host's batches.
      heldout: evaluation on held-out documents.
      suites: evaluation on suites, if there are any.
    """

    stage: Stage
    mesh: Mesh
    model: Model
    program: Program
    objective: BoundObjective
    stream: BatchStream
    heldout: HeldOut
    suites: SuiteScores | None

    @classmethod
    def build(cls, stage: Stage, store: Store, parts: Sequence[str]) -> "Part":
        """Plans the first epoch and draws the held-out examples; compiles at the first step.

        Raises:
          UserError: the store has no batches for this stage, or devices cannot share its arrays.
        """
        config = stage.config
        with stage.errors():
            mesh = config.mesh.mesh()
            check_devices(config, mesh)
            store.check(config.data, config.masking.max_predictions_per_seq, "config")
            rows = hosts.local_rows(rules.batch_sharding(mesh), config.data.batch_size)
            stream = store.training_batches(config.data, seed=config.seed, host_rows=rows)
            model = stage_model(config, mesh, parts)
            heldout = HeldOut(config, store, model, mesh)
            suites = None
            if config.eval_suites:
                suites = suite_scores(config, store.tokenizer, mesh, parts)
        objective = bound_objective(config, store, model, config.seed, stage.first_step)
        optimizer = config.optimizer.transformation(model.axes)
        rate = learning_rate(config, stage.first_step)
        timed = config.budget_hours > 0
        program = Program(config, objective, model, optimizer, rate, mesh, timed=timed)
        return cls(stage, mesh, model, program, objective, stream, heldout, suites)

    def initial_state(self, seed: int, given: dict[str, Any]) -> TrainState:
        """The state at step 0; parameters in `given`, numpy arrays, replace random ones."""
        state = self.program.init(jax.random.key(seed))
        zero1 = self.stage.config.mesh.zero1
        placed = rules.put_params(given, self.mesh, self.model.axes, zero1=zero1)
        return dataclasses.replace(state, params=replace_params(state.params, placed))

    def place(self, state: TrainState) -> TrainState:
        """Moves a state to the layout of this stage."""
        shardings = jax.tree.map(lambda x: x.sharding, self.program.abstract_state)
        return jax.device_put(state, shardings)

    def step(self, budget: Budget) -> Any:
        """(state, batch) -> (state, metrics), compiled."""
        config, program = self.stage.config, self.program
        key = program.dropout_key(config.seed)

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            horizon = [budget.steps] if config.budget_hours else []
            return program.step(state, batch, key, *horizon)

        return step

    def batches(self, done: int) -> Iterator[Batch]:
        """The batches of the remaining steps, on the mesh."""
        first, stop = done - self.stage.first_step, self.stage.config.steps
        return (rules.put_batch(batch, self.mesh) for batch in prefetch(self.stream, first, stop))

    def log(self, writer: MetricsWriter) -> Log:
        """The hook that writes lines of metrics."""
        config = self.stage.config
        return Log(
            writer,
            self.objective.heads,
            self.objective.factors,
            flops_per_token=flops_per_row(config) / config.data.max_seq_length,
            peak_flops=peak_flops(self.mesh),
        )


def describe(parts: list[Part], store: Store) -> None:
    """Prints the number of parameters, the devices, the store and the stages."""
    count = num_params(parts[0].program.abstract_state.params)
    mesh, kind = parts[0].mesh, jax.devices()[0].device_kind
    hosts.print_once(
        f"{count:,} parameters on {mesh.size} {kind} device(s), mesh {dict(mesh.shape)}"
    )
    cpu.advise()
    hosts.print_once(store.summary)
    for part in parts:
        config = part.stage.config
        hosts.print_once(
            f"{part.stage.name or 'run'}: {config.steps:,} steps of {config.data.batch_size:,} "
            f"rows of {config.data.max_seq_length} tokens, {part.stream.rows_per_epoch:,} rows an "
            f"epoch{_used(part.stream.usage, config.data.pairs)}"
        )
        if part.stream.usage and (warning := part.stream.usage.warning()):
            hosts.print_once(f"Warning: {warning}.")


def _used(usage: Usage | None, pairs: str) -> str:
    if usage is None:
        return ""
    of_pairs = {"nsp": "random", "sop": "swapped"}
    labels = "" if usage.label_1 is None else f", {usage.label_1:.0%} of pairs {of_pairs[pairs]}"
    return f", {usage.tokens:.1%} of tokens used{labels}"


def trained_parts(config: PretrainConfig, store: Store | None = None) -> tuple[str, ...]:
    """The parts that a new run trains; those without data for them are not in its model.

    Args:
      config: configuration of the run.
      store: its data, if they are there.
    """
    pairs = any(stage.config.data.pairs != "none" for stage in config.stages())
    # Records that are masked in advance have their own pairs, whatever the config says.
    is_masked = store is not None and store.is_masked
    return config.objective.parts_for(pairs=pairs or is_masked)


def saved_parts(workdir: epath.Path, step: int) -> tuple[str, ...]:
    """The parts in a checkpoint; earlier versions kept heads that nothing trained."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return parts_of(checkpoints.params_tree(step))


def stage_model(config: PretrainConfig, mesh: Mesh, parts: Sequence[str]) -> Model:
    """The model of a run or stage, on a mesh, with some parts of its objective.

    A part starts with the same values whatever the other parts are.
    """
    parallel = parallelism(mesh, config.numerics)
    whole, model = (
        build_model(config.model, config.numerics, parallel, parts=chosen)
        for chosen in (config.objective.parts, parts)
    )
    others = [part for part in config.objective.parts if part not in parts]
    return model._replace(init=lambda key: without_parts(whole.init(key), others))


def suite_scores(
    config: PretrainConfig, tokenizer: Tokenizer, mesh: Mesh, parts: Sequence[str]
) -> SuiteScores:
    """The evaluation on the suites of a run or stage.

    Raises:
      UserError: a suite cannot be read, or the model has no masked_lm.
    """
    if MASKED_LM.part not in parts:
        raise UserError(f"config.eval_suites: the model has no {MASKED_LM.part} to score them")
    with hosts.agreement():
        suites = {
            name.label: open_suite(name, config.eval_suite_pairs)
            for name in map(suite_name, config.eval_suites)
        }
    config = dataclasses.replace(config, numerics=exact(config.numerics))
    return SuiteScores(
        suites,
        tokenizer,
        stage_model(config, mesh, parts),
        config.numerics,
        mesh,
        longest_row=config.model.max_position_embeddings,
        batch_tokens=config.data.batch_size * config.data.max_seq_length,
    )


def learning_rate(config: PretrainConfig, first_step: int = 0) -> Rate:
    """The learning rate of each step of a run.

    With a budget the rate has a second argument, the number of steps that the time allows: the
    schedule over `config.steps` is shrunk to it.

    Args:
      config: configuration of the run or stage.
      first_step: step at which the schedule starts.
    """
    optimizer = config.optimizer
    rate = optimizer.schedule.rate(optimizer.learning_rate, optimizer.warmup_steps, config.steps)
    if config.budget_hours:
        return lambda step, steps: rate(step * (config.steps / steps))
    return lambda step: rate(step - first_step)


def flops_per_row(config: PretrainConfig) -> float:
    """Training FLOPs of a full row that holds one example."""
    length = config.data.max_seq_length
    predictions = config.objective.predicted(config.masking.masked_lm_prob) * length
    return pretraining_flops_per_example(config.model, length=length, predictions=predictions)


def configured_store(config: PretrainConfig) -> Store:
    """Opens the store of a config.

    Raises:
      UserError: no store is named, it cannot be opened, or its vocabulary is not the model's.
    """
    if not config.data.store:
        raise UserError(
            "config.data.store is empty: name the directory that `bert-jax prepare` wrote"
        )
    store = open_store(config.data.store)
    size = len(store.tokenizer.vocab)
    if config.model.vocab_size != size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size}, but {store.path} has a vocabulary "
            f"of {size}: set --config.model.vocab_size={size} or prepare another store"
        )
    dropped, mask_id = config.model.token_dropout_id, store.tokenizer.mask_id
    if dropped not in (None, mask_id):
        raise UserError(
            f"config.model.token_dropout_id={dropped}, but the id of [MASK] in {store.path} is "
            f"{mask_id}: set --config.model.token_dropout_id={mask_id}"
        )
    return store


def check_same(config: PretrainConfig, store: Store) -> None:
    """Raises UserError if a process has another config or other data than process 0."""
    mine = config.to_dict() | identity(store)
    first, *others = map(json.loads, hosts.gather(json.dumps(mine)))
    for process, other in enumerate(others, start=1):
        changed = differences(first, other)
        if changed:
            raise UserError(
                f"process {process} differs from process 0: {'; '.join(changed)}. "
                f"Start all with the same config and token store"
            )


def check_devices(config: PretrainConfig, mesh: Mesh) -> None:
    """Raises UserError if rows or parameters cannot be split over the mesh."""
    check_divides(mesh, config.model)
    rows = config.data.batch_size // config.optimizer.gradient_accumulation
    if rows % row_devices(mesh):
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} in "
            f"{config.optimizer.gradient_accumulation} microbatches gives {rows} rows, which "
            f"{row_devices(mesh)} devices (axes data and fsdp) cannot share equally"
        )


def check_shapes(parts: list[Part]) -> None:
    """Raises UserError if a phase changes the shapes of the training state."""

    def shapes(part: Part) -> dict[str, Any]:
        state = part.program.abstract_state
        leaves = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
        return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}

    first = shapes(parts[0])
    for part in parts[1:]:
        if changed := differences(first, shapes(part)):
            raise UserError(
                f"config.{part.stage.name} changes the shapes of the parameters or of the "
                f"optimizer's state ({changed[0]}): keep them the same in all phases"
            )


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
            (min(done, stage.last_step) - stage.first_step) * stage.config.data.batch_size
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


def check_can_go_on(workdir: epath.Path, config: PretrainConfig, store: Store) -> int | None:
    """Checks that the workdir is new, or that its run can go on with this config and store.

    Returns:
      The step of the checkpoint to go on from; None to begin.

    Raises:
      UserError: the run in it is another one, or already has more steps.
    """
    if not has_run(workdir):
        return starting_step(workdir, None, config.to_dict(), config.resume_from)
    saved = read_pretrain_config(workdir / "config.json").to_dict()
    done = starting_step(workdir, saved, config.to_dict(), config.resume_from)
    step = done or 0
    # A phase that has not begun may change, too.
    later = [s.name for s in config.stages() if s.name and s.first_step >= step]
    changed = differences(saved, config.to_dict())

    def weights() -> str:
        if not config.init_from:
            return ""
        return weights_fingerprint(
            initial_params(config, store.tokenizer, trained_parts(config, store))[0]
        )

    check_same_run(workdir, changed, identity(store), weights, [*resumable(config), *later])
    if step > config.steps:
        raise UserError(
            f"config.steps={config.steps}, but {workdir} has {step} steps already: "
            f"choose another --workdir or more steps"
        )
    return done


def identity(store: Store) -> dict[str, str]:
    """Identifies the data of a run."""
    return {"store_fingerprint": store.fingerprint}

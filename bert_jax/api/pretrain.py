"""Pretrains BERT: masked LM and next sentence prediction on a token store."""

import bisect
import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from bert_jax.config.overrides import differences, flatten
from bert_jax.config.pretraining import PretrainConfig, Stage
from bert_jax.config.saved import read_pretrain_config
from bert_jax.data.batch_sizes import BatchSizes
from bert_jax.data.batches import BatchStream, prefetch
from bert_jax.data.mixture import Mixture
from bert_jax.data.sampling import Usage
from bert_jax.data.stores import Store, open_data, sources_of
from bert_jax.data.suites import suite_name
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.evaluation.heldout import HeldOut, bound_objective
from bert_jax.evaluation.suite_scores import SuiteScores, exact
from bert_jax.evaluation.suites import open_suite
from bert_jax.fields import resumable
from bert_jax.interop.initial import initial_params, replace_params, without_parts
from bert_jax.interop.teachers import FINGERPRINT, Teachers
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import MASKED_LM, parts_of
from bert_jax.model.model import Model
from bert_jax.model.parameters import Params
from bert_jax.objective.protocol import BoundObjective
from bert_jax.parallel import cpu, hosts, rules
from bert_jax.parallel.mesh import check_divides, layout_of, row_devices
from bert_jax.parallel.parallelism import check_attention, parallelism
from bert_jax.report.flops import peak_flops, pretraining_flops_per_example
from bert_jax.report.live import draw_run
from bert_jax.storage import read_json
from bert_jax.terminal import is_quiet
from bert_jax.train.budget import Budget
from bert_jax.train.checkpoints import Checkpoints, DamagedCheckpoint, latest_step
from bert_jax.train.checksums import weights_fingerprint
from bert_jax.train.hooks import Evaluate, Log, Target, save
from bert_jax.train.metrics import MetricsWriter
from bert_jax.train.profiling import Profiler
from bert_jax.train.program import Program
from bert_jax.train.run import Origin, parse_origin
from bert_jax.train.schedules import Rate
from bert_jax.train.starts import record_start
from bert_jax.train.state import TrainState, num_params
from bert_jax.train.step import Batch, Metrics
from bert_jax.train.trackers import check_trackers
from bert_jax.train.trainer import Trainer
from bert_jax.train.workdirs import (
    FIRST_ROW,
    PASSED,
    WEIGHTS,
    check_same_run,
    claim_workdir,
    has_run,
    held,
    other_data,
    start_of,
    starting_step,
    way_back,
)

# Beginnings of lines about fields in which a branch may differ from its run; the rows of its data
# are the same whatever `SAME_ROWS` are.
SAME_ROWS = ("data.batch_size:", "data.start_batch_size:", "data.growth_")
# How suites are scored, by what a head of words learned.
METHODS = {"mlm": "pll", "mntp": "mntp", "clm": "causal"}
BRANCH = ("branch_from:", "optimizer.", "masking.", "data.max_passes:", *SAME_ROWS)


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


class Part(NamedTuple):
    """The objects that train one stage of a run.

    Attributes:
      stage: stage to train.
      mesh: devices to compute on.
      model: structure of the model.
      program: training state and step.
      objective: what the model learns.
      store: its data.
      stream: this host's batches.
      heldout: evaluation on held-out documents.
      suites: evaluation on suites, if there are any.
      teacher: architecture of the teacher, if there is one.
    """

    stage: Stage
    mesh: Mesh
    model: Model
    program: Program
    objective: BoundObjective
    store: Store
    stream: BatchStream
    heldout: HeldOut
    suites: SuiteScores | None
    teacher: Architecture | None

    @classmethod
    def build(
        cls,
        stage: Stage,
        store: Store,
        parts: Sequence[str],
        teachers: Teachers,
        first_row: int = 0,
    ) -> "Part":
        """Plans the first epoch and draws the held-out examples; compiles at the first step.

        Args:
          stage: stage to train.
          store: its data.
          parts: parts of the model.
          teachers: teachers of the run.
          first_row: row of the data with which the first batch begins.

        Raises:
          UserError: the store has no batches for this stage, or devices cannot share its arrays.
        """
        config = stage.config
        with stage.errors():
            mesh = config.mesh.mesh()
            check_devices(config, mesh)
            store.check(config.data, config.masking.max_predictions_per_seq, "config")
            stream = store.training_batches(
                config.data,
                seed=config.seed,
                first_row=first_row,
                host_rows=functools.partial(hosts.local_rows, rules.batch_sharding(mesh)),
            )
            teacher = teachers.architecture(config)
            model = stage_model(config, mesh, parts, teacher)
            frozen = teachers.beside(config, mesh, model.axes)
            heldout = HeldOut(config, store, model, mesh)
            objective = bound_objective(config, store, model, config.seed, stage.first_step)
            suites = None
            if config.eval_suites:
                heads = objective.word_heads
                suites = suite_scores(config, store.tokenizer, mesh, parts, heads, teacher)
        optimizer = config.optimizer.transformation(model.axes)
        rate = learning_rate(config, stage.first_step)
        timed = config.budget_hours > 0
        program = Program(
            config,
            objective,
            model,
            optimizer,
            rate,
            mesh,
            timed=timed,
            adaptive=config.adaptive,
            vocab_size=config.model.vocab_size,
            frozen=frozen,
        )
        return cls(stage, mesh, model, program, objective, store, stream, heldout, suites, teacher)

    def initial_state(self, seed: int, given: dict[str, Any]) -> TrainState:
        """The state at step 0; parameters in `given`, numpy arrays, replace random ones."""
        state = self.program.init(jax.random.key(seed))
        zero1 = self.stage.config.mesh.zero1
        placed = rules.put_params(given, self.mesh, self.model.axes, zero1=zero1)
        params = replace_params(state.params, placed)
        return self.program.place(dataclasses.replace(state, params=params, ema=None))

    def trained(self, state: TrainState, member: str = "params") -> Params:
        """What evaluations read: parameters of a state, and those beside it."""
        return getattr(state, member) | self.program.frozen

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
        config, sizes = self.stage.config, BatchSizes(self.stage.config.data)

        def passes(step: int) -> dict[str, float]:
            passed = self.stream.passes(step - self.stage.first_step)
            return {f"data/passes/{name}": times for name, times in passed.items()}

        return Log(
            writer,
            self.objective.heads,
            self.objective.factors,
            more=passes,
            first_row=lambda step: sizes.first_row(step - self.stage.first_step),
            flops_per_token=flops_per_row(config, self.teacher) / config.data.max_seq_length,
            peak_flops=peak_flops(self.mesh),
        )


def describe(parts: list[Part]) -> None:
    """Prints the number of parameters, the devices, the stores and the stages."""
    count = num_params(parts[0].program.abstract_state.params)
    mesh, kind = parts[0].mesh, jax.devices()[0].device_kind
    hosts.print_once(
        f"{count:,} parameters on {mesh.size} {kind} device(s), mesh {layout_of(mesh)}"
    )
    cpu.advise()
    for summary in dict.fromkeys(part.store.summary for part in parts):
        hosts.print_once(summary)
    for part in parts:
        config, sizes = part.stage.config, BatchSizes(part.stage.config.data).sizes
        grow = f"{sizes[0]:,} to " if len(sizes) > 1 else ""
        hosts.print_once(
            f"{part.stage.name or 'run'}: {config.steps:,} steps of {grow}{sizes[-1]:,} "
            f"rows of {config.data.max_seq_length} tokens, {part.stream.rows_per_epoch:,} rows an "
            f"epoch{_used(part.stream.usage, config.data.pairs)}"
        )
        _describe_mixture(part)
        if len(sizes) > 1:
            hosts.print_once(
                f"batches grow in {config.data.growth_steps:,} steps; the step is compiled for "
                f"each of their {len(sizes)} sizes"
            )
        if part.stream.usage and (warning := part.stream.usage.warning()):
            hosts.print_once(f"Warning: {warning}.", result=True)


def _describe_mixture(part: Part) -> None:
    """Prints shares and passes of the sources, if there are several, and warnings about them."""
    stage, stream = part.stage, part.stream
    if mixture := stage.config.data.mixture_summary:
        hosts.print_once(f"  tokens from {mixture}")
    steps = range(stage.config.steps + 1)
    before, after = stream.passes(0), stream.passes(stage.config.steps)
    for source in stream.parts:
        name, used_up = source.name, ""
        if after[name] >= source.limit:
            step = bisect.bisect_left(steps, after[name], key=lambda s: stream.passes(s)[name])
            used_up = f": used up at step {stage.first_step + step:,}, the others have its share"
        hosts.print_once(
            f"  {name}: {source.share:.1%} of the tokens, {source.rows_per_epoch:,} rows a "
            f"pass{_used(source.usage, stage.config.data.pairs)}, passed "
            f"{before[name]:.2f} to {after[name]:.2f} times{used_up}"
        )
        if source.usage and (warning := source.usage.warning()):
            hosts.print_once(f"Warning: {name}: {warning}.", result=True)


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


def stage_model(
    config: PretrainConfig,
    mesh: Mesh,
    parts: Sequence[str],
    teacher: Architecture | None = None,
) -> Model:
    """The model of a run or stage, on a mesh, with some parts of its objective.

    A part starts with the same values whatever the other parts are. With the architecture of a
    teacher, that is beside it.
    """
    parallel = parallelism(mesh, config.numerics)
    more = (teacher,) if teacher else ()
    whole, model = (
        config.objective.model(config.model, config.numerics, parallel, chosen, *more)
        for chosen in (config.objective.parts, parts)
    )
    others = [part for part in config.objective.parts if part not in parts]
    return model._replace(init=lambda key: without_parts(whole.init(key), others))


def suite_scores(
    config: PretrainConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    parts: Sequence[str],
    word_heads: Sequence[str],
    teacher: Architecture | None,
) -> SuiteScores:
    """The evaluation on the suites of a run or stage.

    Args:
      config: configuration of the run or stage.
      tokenizer: tokenizer of its data.
      mesh: devices to compute on.
      parts: parts of the model.
      word_heads: those of its objective.
      teacher: architecture of its teacher, if it has one.

    Raises:
      UserError: a suite cannot be read, or the model predicts no words.
    """
    methods = [METHODS[head] for head in word_heads if head in METHODS]
    if MASKED_LM.part not in parts or not methods:
        raise UserError("config.eval_suites: the model predicts no words; set it to ()")
    with hosts.agreement():
        suites = {
            name.label: open_suite(name, config.eval_suite_pairs)
            for name in map(suite_name, config.eval_suites)
        }
    config = dataclasses.replace(config, numerics=exact(config.numerics))
    return SuiteScores(
        suites,
        tokenizer,
        stage_model(config, mesh, parts, teacher),
        config.numerics,
        mesh,
        longest_row=config.model.max_position_embeddings,
        batch_tokens=config.data.batch_size * config.data.max_seq_length,
        method=methods[0],
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


def flops_per_row(config: PretrainConfig, teacher: Architecture | None = None) -> float:
    """Training FLOPs of a full row that holds one example; a teacher only runs forward."""
    length = config.data.max_seq_length
    predictions = config.objective.predicted(config.masking.masked_lm_prob) * length
    *others, last = config.objective.encoders(config.model)
    trained = sum(
        pretraining_flops_per_example(encoder, length=length, predictions=number)
        for encoder, number in [*((other, 0.0) for other in others), (last, predictions)]
    )
    if teacher is None:
        return trained
    number = predictions if config.objective.teacher_parts else 0.0
    return trained + pretraining_flops_per_example(teacher, length=length, predictions=number) / 3


def configured_stores(config: PretrainConfig) -> tuple[Store, ...]:
    """Opens the data of each stage of a run; those of several stages once.

    Raises:
      UserError: as `configured_store`, or the stages have different vocabularies.
    """
    opened: dict[Any, Store] = {}
    stores: list[Store] = []
    for stage in config.stages():
        data = stage.config.data
        key = data.store, tuple((source.name, source.store) for source in data.sources)
        with stage.errors():
            if key not in opened:
                opened[key] = configured_store(stage.config)
            stores.append(opened[key])
            if stores[-1].tokenizer.vocab_hash != stores[0].tokenizer.vocab_hash:
                raise UserError(
                    f"config.{stage.name}.data: {stores[-1].path} has another vocabulary than "
                    f"{stores[0].path}, which an earlier phase reads"
                )
    return tuple(stores)


def configured_store(config: PretrainConfig) -> Store:
    """Opens the store of a stage.

    Raises:
      UserError: no store is named, it cannot be opened, or its vocabulary is not the model's.
    """
    store = open_data(config.data)
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


def going_on(store: Store, passed: Mapping[str, float]) -> Store:
    """The data of a stage; a mixture goes on where its sources were passed to."""
    return store.after(passed) if isinstance(store, Mixture) else store


def passed_before(
    config: PretrainConfig, stores: Sequence[Store], step: int, started: Mapping[str, Any]
) -> dict[str, float]:
    """How often each source of mixtures was passed before a step of a run, by name.

    Args:
      config: configuration of the run.
      stores: its data, by stage.
      step: step of the run.
      started: what its `data.json` says that it started from.
    """
    passed: dict[str, float] = dict(started.get(PASSED, {}))
    first_row = started.get(FIRST_ROW, 0)
    for stage, store in zip(config.stages(), stores):
        if stage.first_step < step and isinstance(store, Mixture):
            stream = store.after(passed).training_batches(
                stage.config.data, seed=config.seed, host_rows=np.arange, first_row=first_row
            )
            passed |= stream.passes(min(step, stage.last_step) - stage.first_step)
        first_row = 0
    return passed


def passed_at_origin(config: PretrainConfig, same_rows: bool) -> dict[str, float]:
    """How often each source was passed where a branch begins to count its rows.

    Args:
      config: configuration of the branch.
      same_rows: whether its rows are those of the stage of its run, which began with the first.
    """
    run = epath.Path(parse_origin(config.branch_from).workdir)
    saved = read_pretrain_config(run / "config.json")
    if not any(stage.config.data.mixture for stage in saved.stages()):
        return {}
    step = saved.stage_of(config.first_step).first_step if same_rows else config.first_step
    return passed_before(saved, configured_stores(saved), step, start_of(run))


def check_same(config: PretrainConfig, data: Mapping[str, str]) -> None:
    """Raises UserError if a process has another config or other data than process 0.

    Args:
      config: configuration of the run.
      data: identifies its data.
    """
    mine = config.to_dict() | dict(data)
    first, *others = map(json.loads, hosts.gather(json.dumps(mine)))
    for process, other in enumerate(others, start=1):
        changed = differences(first, other)
        if changed:
            raise UserError(
                f"process {process} differs from process 0: {'; '.join(changed)}. "
                f"Start all with the same config and token store"
            )


def check_devices(config: PretrainConfig, mesh: Mesh) -> None:
    """Raises UserError if rows or parameters cannot be split over the mesh, or a kernel not run."""
    check_divides(mesh, config.model)
    for other in config.objective.encoders(config.model)[1:]:
        check_divides(mesh, other, "the generator's ")
    check_attention(mesh, config.numerics)
    for size in BatchSizes(config.data).sizes[::-1]:
        rows = size // config.optimizer.gradient_accumulation
        if rows % row_devices(mesh):
            name = "config.data.batch_size"
            if size < config.data.batch_size:
                name = "config.data.start_batch_size with config.data.growth_rows, a batch"
            raise UserError(
                f"{name}={size} in "
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


def check_can_go_on(
    workdir: epath.Path, config: PretrainConfig, store: Store, data: Mapping[str, str]
) -> int | None:
    """Checks that the workdir is new, or that its run can go on with this config and these data.

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

    free = [*resumable(config), *moved(config), *later]
    check_same_run(workdir, changed, data, weights, free)
    if step > config.last_step:
        raise UserError(
            f"config.steps={config.steps}, but {workdir} has {step - config.first_step} steps "
            "already: choose another --workdir or more steps"
        )
    return done


def with_origin(config: PretrainConfig, workdir: epath.Path) -> PretrainConfig:
    """The config with the step from which a branch begins, if it names only the run.

    Raises:
      UserError: that run has no checkpoint.
    """
    origin = parse_origin(config.branch_from)
    if not origin.workdir or origin.step is not None:
        return config
    if has_run(workdir):
        saved = parse_origin(read_pretrain_config(workdir / "config.json").branch_from)
        if saved.workdir == origin.workdir:
            return dataclasses.replace(config, branch_from=str(saved))
    step = latest_step(origin.workdir) if epath.Path(origin.workdir).exists() else None
    if step is None:
        raise UserError(f"config.branch_from={origin}: no run with a checkpoint there")
    return dataclasses.replace(config, branch_from=str(origin._replace(step=step)))


def check_origin(config: PretrainConfig, store: Store, teachers: Teachers) -> int:
    """Checks that a branch goes on with the model, the teacher and the data of its run.

    Returns:
      The row of the data with which its first batch begins: that at which the run has arrived, or
      the first one if a phase of the branch has rows of another kind.

    Raises:
      UserError: there is no such run, or it is of another model or other data; the message lists
        the differences.
    """
    origin = parse_origin(config.branch_from)
    run = epath.Path(origin.workdir)
    if not (run / "config.json").exists():
        raise UserError(f"config.branch_from={origin}: {run} holds no run")
    saved = read_pretrain_config(run / "config.json")
    if not saved.first_step < config.first_step <= saved.last_step:
        raise UserError(f"config.branch_from={origin}: {run} has no checkpoint of that step")
    before, after = saved.stage_of(config.first_step), config.stages()[0]
    changed = differences(before.config.to_dict(), after.config.to_dict())
    of_phase = [f"{path}{end}" for path in flatten(after.phase) for end in ":.["]
    if not {"data.store:", "data.mixture:"} & {*of_phase}:
        changed += other_data(read_json(run / "data.json"), identity(store))
    if config.objective.teacher:
        first = {FINGERPRINT: teachers.fingerprints[FINGERPRINT]}
        changed += other_data(read_json(run / "data.json"), first)
    same_rows = (*SAME_ROWS, *moved(config))
    free = (*resumable(config), *BRANCH, *same_rows, *of_phase)
    refused = [x for x in changed if not x.startswith(free)]
    if refused:
        raise UserError(
            f"config.branch_from={origin} is a run of another model or other data: "
            f"{'; '.join(refused)}. Give the values of that run, or new ones in config.phases"
        )
    for line in changed:
        hosts.print_once(f"other than in {run}: {line}", result=True)
    if any(x.startswith("data.") and not x.startswith(same_rows) for x in changed):
        return 0
    first_row = start_of(run).get(FIRST_ROW, 0) if before.first_step == saved.first_step else 0
    done = config.first_step - before.first_step
    return BatchSizes(before.config.data, first_row).first_row(done)


@contextlib.contextmanager
def other_origin(origin: Origin) -> Iterator[None]:
    """Adds to the error about a damaged checkpoint of a run from which other a branch can begin."""
    try:
        yield
    except DamagedCheckpoint as error:
        advice = (
            f": set config.branch_from={origin.workdir}@{error.whole[-1]}" if error.whole else ""
        )
        raise UserError(f"{error.fact}{advice}") from error


def moved(config: PretrainConfig) -> list[str]:
    """Beginnings of the lines of `differences` about the paths of stores and teachers."""
    names = ["data.store", "objective.teacher"]
    names += [f"data.mixture[{i}].store" for i in range(len(config.data.mixture))]
    for stage in config.stages() if config.phases else ():
        each = ["data.store", "objective.teacher"]
        each += [f"data.mixture[{i}].store" for i in range(len(stage.config.data.mixture))]
        names += [f"{stage.name}.{name}" for name in each]
    return [f"{name}:" for name in names]


def identity(store: Store, stage: str = "") -> dict[str, str]:
    """Identifies the data of a stage: the fingerprint of its store, or of each source by name.

    Args:
      store: its data.
      stage: name of the stage; empty for the first one.
    """
    prefix = f"{stage}." if stage else ""
    return {
        f"{prefix}store_fingerprint{f'.{name}' if name else ''}": source.fingerprint
        for name, source in sources_of(store).items()
    }


def identities(config: PretrainConfig, stores: Sequence[Store]) -> dict[str, str]:
    """Identifies the data of a run; of later stages, those that differ from the first one's."""
    found = identity(stores[0])
    for stage, store in zip(config.stages(), stores):
        if store is not stores[0]:
            found |= identity(store, stage.name)
    return found

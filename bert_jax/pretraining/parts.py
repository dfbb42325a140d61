"""The objects that train one stage of a run."""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from bert_jax.config.overrides import differences
from bert_jax.config.pretraining import PretrainConfig, Stage
from bert_jax.data.batch_sizes import BatchSizes
from bert_jax.data.batches import BatchStream, prefetch
from bert_jax.data.sampling import Usage
from bert_jax.data.stores import Store
from bert_jax.data.suites import suite_name
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.evaluation.heldout import HeldOut, bound_objective
from bert_jax.evaluation.suite_scores import SuiteScores, exact
from bert_jax.evaluation.suites import open_suite
from bert_jax.interop.initial import replace_params
from bert_jax.interop.teachers import Teachers
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import MASKED_LM
from bert_jax.model.model import Model
from bert_jax.model.parameters import Params
from bert_jax.objective.protocol import BoundObjective
from bert_jax.parallel import cpu, hosts, rules
from bert_jax.parallel.mesh import layout_of
from bert_jax.pretraining.stages import check_devices, flops_per_row, learning_rate, stage_model
from bert_jax.report.flops import peak_flops
from bert_jax.train.budget import Budget
from bert_jax.train.hooks import Log
from bert_jax.train.metrics import MetricsWriter
from bert_jax.train.program import Program
from bert_jax.train.state import TrainState, num_params
from bert_jax.train.step import Batch, Metrics

# How suites are scored, by what a head of words learned.
METHODS = {"mlm": "pll", "mntp": "mntp", "clm": "causal"}


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


def describe(parts: list[Part]) -> None:
    """Prints the number of parameters, the devices, the stores and the stages."""
    count = num_params(parts[0].program.abstract_state.params)
    mesh, kind = parts[0].mesh, jax.devices()[0].device_kind
    hosts.print_once(
        f"{count:,} parameters on {mesh.size} {kind} device(s), mesh {layout_of(mesh)}"
    )
    cpu.advise(parts[0].stage.config.numerics.compute_dtype)
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

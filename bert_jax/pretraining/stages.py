"""What a stage of a run computes: its model, learning rate and cost."""

from collections.abc import Sequence

from etils import epath
from jax.sharding import Mesh

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.batch_sizes import BatchSizes
from bert_jax.data.stores import Store
from bert_jax.errors import UserError
from bert_jax.interop.initial import without_parts
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import parts_of
from bert_jax.model.model import Model
from bert_jax.parallel.mesh import check_divides, row_devices
from bert_jax.parallel.parallelism import check_attention, parallelism
from bert_jax.report.flops import pretraining_flops_per_example
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.schedules import Rate


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

"""The weights that a run starts from, and those of its teacher."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.errors import UserError
from bert_jax.evaluation.task_scores import Examples
from bert_jax.finetuning.setup import Setup
from bert_jax.interop.initial import (
    replace_params,
    with_parts_only,
    without_parts,
)
from bert_jax.interop.portable import Portable
from bert_jax.interop.teachers import read_teacher
from bert_jax.model.decoder import with_decoder
from bert_jax.model.heads import (
    DECODER,
    HEADS,
    MASKED_LM,
    MULTI_LABEL_CLASSIFIER,
    WRITING,
    parts_of,
)
from bert_jax.model.lora import trained_params
from bert_jax.model.parameters import Params
from bert_jax.parallel import hosts, rules
from bert_jax.tasks.features import check_token_types
from bert_jax.tasks.protocol import AnyTask
from bert_jax.train.state import TrainState


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
    if config.lora_rank:
        given = trained_params(given)
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

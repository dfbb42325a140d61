"""What the runs of all seeds share: model, objective, compiled step and scores."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.evaluation.task_scores import Examples, TaskScores
from bert_jax.fields import Plain
from bert_jax.finetuning.data import training_batches
from bert_jax.finetuning.description import describe
from bert_jax.interop.portable import Portable
from bert_jax.model.lora import LowRank, frozen_params, model_with_factors
from bert_jax.model.model import Model, build_model
from bert_jax.model.parameters import Axes, Params, joined
from bert_jax.model.teacher import TEACHER, model_with_teacher
from bert_jax.objective.finetuning import FineTuning
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import check_divides
from bert_jax.parallel.parallelism import check_attention, parallelism
from bert_jax.tasks.protocol import AnyTask
from bert_jax.train.checksums import weights_fingerprint
from bert_jax.train.optimizers import scale_by_depth
from bert_jax.train.program import Program


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
        made_of: dict[str, Any] = {
            "architecture": source.architecture,
            "numerics": config.numerics,
            "parallel": parallelism(mesh, config.numerics),
            "parts": task.head.parts(source.architecture),
            "outputs": task.num_labels,
        }
        model = build_model(**made_of)
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
                **made_of,
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
            trained = model_with_factors(**made_of, lora=lora)
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


def transformation(
    config: FinetuneConfig, axes: Axes, num_layers: int
) -> optax.GradientTransformation:
    """The optimizer, with `config.layer_decay` over the layers and `config.freeze` applied."""
    optimizer = config.optimizer.transformation(axes)
    if config.layer_decay == 1 and not config.freeze:
        return optimizer
    return optax.chain(optimizer, scale_by_depth(num_layers, config.layer_decay, config.freeze))


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

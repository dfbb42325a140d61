"""Scores checkpoints: of pretraining on held-out documents, of fine-tuning on examples."""

from collections.abc import Mapping
from typing import NamedTuple

from etils import epath
from jax.sharding import Mesh

from bert_jax.api.pretrain import check_same, stage_model
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.saved import is_finetuning, read_finetune_config, read_pretrain_config
from bert_jax.data.stores import open_store
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.evaluation.heldout import HeldOut
from bert_jax.evaluation.task_scores import Examples, TaskScores
from bert_jax.interop.formats import read
from bert_jax.interop.workdir import check_params
from bert_jax.model.heads import parts_of
from bert_jax.model.model import Model, build_model
from bert_jax.model.parameters import Params
from bert_jax.parallel import hosts, rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import parallelism
from bert_jax.storage import read_json
from bert_jax.train.checkpoints import Checkpoints, latest_step


class Evaluated(NamedTuple):
    """Scores of a checkpoint.

    Attributes:
      split: "heldout" for pretraining, `data` for fine-tuning.
      step: step of the checkpoint.
      scores: scores by metric; losses in nats, accuracies in [0, 1].
      baselines: scores of a guess that ignores the context, for some metrics.
    """

    split: str
    step: int
    scores: Mapping[str, float]
    baselines: Mapping[str, float]


def evaluate(
    workdir: epath.PathLike,
    *,
    step: int | None = None,
    store: str | None = None,
    data: str = "dev",
    predictions: epath.PathLike | None = None,
) -> Evaluated:
    """Scores a checkpoint: of pretraining on held-out documents, of fine-tuning on examples.

    Args:
      workdir: directory of the training run.
      step: checkpoint to score; None for the newest, or the best of fine-tuning.
      store: for pretraining, store whose held-out documents to score on; None for the run's.
      data: for fine-tuning, "train", "dev", "test", or another file or tfds:NAME:SPLIT.
      predictions: for fine-tuning, file to write predictions to; labels are then not read.

    Raises:
      UserError: there is no such checkpoint or data, or they do not fit together.
    """
    workdir = epath.Path(workdir)
    with hosts.agreement():
        is_task = is_finetuning(read_json(workdir / "config.json"))
    if is_task:
        return _evaluate_task(workdir, step, data, predictions)
    return _evaluate_pretraining(workdir, step, store)


def _evaluate_pretraining(
    workdir: epath.Path, step: int | None, store_path: str | None
) -> Evaluated:
    with hosts.agreement():
        config = read_pretrain_config(workdir / "config.json")
        store = open_store(store_path or config.data.store)
        if store.wordpiece.vocab_hash != load_wordpiece(workdir).vocab_hash:
            raise UserError(
                f"{store.path} has another vocabulary than {workdir}: "
                f"prepare it with `bert-jax prepare --vocab={workdir}`"
            )
    check_same(config, store)
    mesh = make_mesh()
    trained = load_trained(workdir, mesh, step)
    heldout = HeldOut(trained.config, store, trained.model, mesh)
    return Evaluated("heldout", trained.step, heldout(trained.params), heldout.baselines())


def _evaluate_task(
    workdir: epath.Path, step: int | None, data: str, predictions_path: epath.PathLike | None
) -> Evaluated:
    with hosts.agreement():
        config = read_finetune_config(workdir / "config.json")
        checkpoint = workdir if step is not None else workdir / "best"
        model = read(checkpoint, step)
        task = config.task.with_labels(model.labels)
        splits = {split: getattr(task, split) for split in ("train", "dev", "test")}
        source = splits.get(data, data)
        if not source:
            raise UserError(f"--data={data}: the run had none; name a file")
        labelled = predictions_path is None
        examples = task.read(source, labelled=labelled)
        features = task.features(examples, model.wordpiece, task.max_seq_length)
        baseline = task.baseline(task.read(task.train), examples) if labelled else {}
    mesh = make_mesh()
    structure = build_model(
        model.architecture,
        model.numerics,
        parallelism(mesh, model.numerics),
        parts=parts_of(model.params),
        outputs=task.num_labels,
    )
    score = TaskScores(
        task,
        Examples(examples, features, labelled),
        structure,
        model.numerics,
        mesh,
        pad_id=model.wordpiece.pad_id,
        batch_size=4 * config.batch_size,
    )
    params = rules.put_params(model.params, mesh, structure.axes)
    metrics, predictions = score(params)
    if predictions_path and hosts.is_primary():
        task.write_predictions(epath.Path(predictions_path), examples, predictions)
    found = latest_step(checkpoint) if step is None else step
    assert found is not None  # `read` found it
    return Evaluated(data, found, metrics, baseline)


class Trained(NamedTuple):
    """A checkpoint of pretraining, restored.

    Attributes:
      config: configuration of the stage that the checkpoint was trained in.
      model: structure of the model.
      params: parameters, on a mesh.
      step: step of the checkpoint.
    """

    config: PretrainConfig
    model: Model
    params: Params
    step: int


def load_trained(workdir: epath.Path, mesh: Mesh, step: int | None = None) -> Trained:
    """Restores the parameters of a pretraining run onto a mesh.

    Args:
      workdir: directory of the run.
      mesh: mesh for the parameters; may differ from the run's.
      step: checkpoint to restore; None for the newest.

    Raises:
      UserError: `workdir` has no run or no such checkpoint.
    """
    config = read_pretrain_config(workdir / "config.json")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        params, step = checkpoints.read_params(step)
    config = config.stage_of(step).config
    model = stage_model(config, mesh)
    check_params(workdir / "checkpoints" / str(step), model, params)
    return Trained(config, model, rules.put_params(params, mesh, model.axes), step)

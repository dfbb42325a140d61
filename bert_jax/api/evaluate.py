"""Scores checkpoints: of pretraining on held-out documents, of fine-tuning on examples."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import with_overrides
from bert_jax.config.saved import is_finetuning, read_finetune_config, read_pretrain_config
from bert_jax.data.stores import Store, open_data, open_store
from bert_jax.data.tokenizer_json import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.evaluation.heldout import HeldOut
from bert_jax.evaluation.predictions import Predicted, check_path, write
from bert_jax.evaluation.task_scores import Examples, Scores, TaskScores
from bert_jax.fields import Plain, build, to_plain
from bert_jax.inference.fine_tuned import known_task, task_of
from bert_jax.interop.formats import read
from bert_jax.interop.portable import Portable, structure_of
from bert_jax.interop.teachers import Teachers
from bert_jax.interop.workdir import check_params
from bert_jax.model.heads import parts_of
from bert_jax.model.model import Model
from bert_jax.model.parameters import Params
from bert_jax.parallel import hosts, rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.parallel.parallelism import parallelism
from bert_jax.pretraining.data import identity
from bert_jax.pretraining.resuming import check_same
from bert_jax.pretraining.stages import stage_model
from bert_jax.storage import read_json
from bert_jax.tasks import SimilarityTask, Task
from bert_jax.tasks.features import Features, check_token_types
from bert_jax.tasks.protocol import AnyTask, settings
from bert_jax.train.checkpoints import Checkpoints, DamagedCheckpoint, latest_step
from bert_jax.train.weights import TRAINED
from bert_jax.train.workdirs import other_data

_log = logging.getLogger(__name__)


class Evaluated(NamedTuple):
    """Scores of a checkpoint.

    Attributes:
      split: "heldout" for pretraining, `data` for a task.
      step: step of the checkpoint; None for a model without any.
      scores: scores by metric; losses in nats, accuracies in [0, 1].
      baselines: scores of a guess that ignores the context, for some metrics.
    """

    split: str
    step: int | None
    scores: Mapping[str, float]
    baselines: Mapping[str, float]


def evaluate(
    workdir: epath.PathLike,
    *,
    step: int | None = None,
    weights: str = TRAINED,
    store: str | None = None,
    data: str = "dev",
    predictions: epath.PathLike | None = None,
    overrides: Sequence[str] = (),
) -> Evaluated:
    """Scores a checkpoint: of pretraining on held-out documents, of a task on examples.

    Args:
      workdir: directory of a training run, or of any model with the head of a task, such as a
        classifier of Hugging Face.
      step: checkpoint to score; None for the newest, or the best of fine-tuning.
      weights: which of a workdir, "trained", "ema" or "average:N"; see `bert_jax.train.weights`.
      store: for pretraining, store whose held-out documents to score on; None for the run's.
      data: for a task, "train", "dev" or "test" of the run, or another file or tfds:NAME:SPLIT.
      predictions: for a task, file to write predictions to; labels are then not read. See
        `bert_jax.evaluation.predictions.write`.
      overrides: for a task, `--config.task.FIELD=VALUE`, as `finetune` takes them.

    Raises:
      UserError: there is no such checkpoint or data, or they do not fit together.
    """
    workdir = epath.Path(workdir)
    with hosts.agreement():
        config_file = workdir / "config.json"
        fields = read_json(config_file) if config_file.exists() else {}
        if wrong := [
            flag for flag in overrides if not flag.startswith(("--config.task.", "--config.task="))
        ]:
            raise UserError(f"{wrong[0]}: only fields of the task, --config.task.FIELD=VALUE")
    if "data" not in fields:
        return _evaluate_task(workdir, step, weights, data, predictions, overrides)
    with hosts.agreement():
        if predictions or overrides:
            raise UserError(f"{workdir} is a pretraining run, which has no task to predict")
    return _evaluate_pretraining(workdir, step, weights, store)


def evaluate_stores(
    workdir: epath.PathLike,
    stores: Mapping[str, str],
    *,
    step: int | None = None,
    weights: str = TRAINED,
) -> dict[str, Evaluated]:
    """Scores a checkpoint of pretraining on the held-out documents of several stores, by name.

    Args:
      workdir: directory of a pretraining run.
      stores: name -> store.
      step: checkpoint to score; None for the newest.
      weights: as for `evaluate`.

    Returns:
      Name -> scores, whose `split` is "heldout". They have `tokens`, the number of tokens, too.

    Raises:
      UserError: there is no such checkpoint or store, or a store has another vocabulary.
    """
    workdir = epath.Path(workdir)
    with hosts.agreement():
        if "data" not in read_json(workdir / "config.json"):
            raise UserError(f"{workdir}: not a pretraining run, so it has no held-out documents")
        config = read_pretrain_config(workdir / "config.json")
        opened = {name: _open(workdir, path) for name, path in stores.items()}
    return _scored(workdir, config, opened, step, weights)


def _scored(
    workdir: epath.Path,
    config: PretrainConfig,
    opened: Mapping[str, Store],
    step: int | None,
    weights: str,
) -> dict[str, Evaluated]:
    """See `evaluate_stores`; `config` is that of the run, `opened` its stores or others."""
    for store in opened.values():
        check_same(config, identity(store))
    mesh = make_mesh()
    trained = load_trained(workdir, mesh, step, weights)
    found = {}
    for name, store in opened.items():
        heldout = HeldOut(trained.config, store, trained.model, mesh)
        scores = heldout(trained.params) | {"tokens": heldout.tokens}
        found[name] = Evaluated("heldout", trained.step, scores, heldout.baselines())
    return found


def _evaluate_pretraining(
    workdir: epath.Path, step: int | None, weights: str, store_path: str | None
) -> Evaluated:
    with hosts.agreement():
        config = read_pretrain_config(workdir / "config.json")
        stage = config.stage_of(latest_step(workdir) or 0 if step is None else step)
        data = stage.config.data
        for path in () if store_path else data.stores:
            if not epath.Path(path).exists():
                raise UserError(f"{path}, the store of the run, is not there: pass --store")
        if store_path:
            store = _open(workdir, store_path)
        else:
            store = open_data(data)
            _check_vocabulary(workdir, store)
    (found,) = _scored(workdir, config, {"": store}, step, weights).values()
    return found._replace(scores={n: x for n, x in found.scores.items() if n != "tokens"})


def _open(workdir: epath.Path, path: str) -> Store:
    """Opens a store whose vocabulary is that of a run."""
    store = open_store(path)
    _check_vocabulary(workdir, store)
    return store


def _check_vocabulary(workdir: epath.Path, store: Store) -> None:
    if store.tokenizer.vocab_hash != load_tokenizer(workdir).vocab_hash:
        raise UserError(
            f"{store.path} has another vocabulary than {workdir}: "
            f"prepare it with `bert-jax prepare --vocab={workdir}`"
        )


class Opened(NamedTuple):
    """A model with the head of a task, and examples.

    Attributes:
      model: the model.
      task: the task.
      config: configuration of the run; None of a model from elsewhere.
      examples: examples of the task.
      step: step of the checkpoint; None for a model without any.
    """

    model: Portable
    task: AnyTask
    config: FinetuneConfig | None
    examples: list[Any]
    step: int | None


def open_task(
    workdir: epath.Path,
    step: int | None,
    weights: str,
    data: str,
    overrides: Sequence[str] = (),
    *,
    labelled: bool = True,
) -> Opened:
    """Reads a model and examples of its task; see `evaluate`.

    Args:
      workdir, step, weights, data, overrides: as for `evaluate`.
      labelled: whether the examples need labels.

    Raises:
      UserError: as `evaluate`.
    """
    config_file, checkpoint, config = workdir / "config.json", workdir, None
    if config_file.exists() and is_finetuning(read_json(config_file)):
        config = read_finetune_config(config_file)
        if step is None and (workdir / "best").exists():
            checkpoint = workdir / "best"
    try:
        model = read(checkpoint, step, weights=weights)
    except DamagedCheckpoint as error:
        if checkpoint == workdir or not error.whole:
            raise
        advice = f"score another with --workdir={checkpoint} --step={error.whole[-1]}"
        raise UserError(f"{error.fact}: {advice}") from error
    task = _task(model, config, overrides)
    splits = {split: getattr(task, split) for split in ("train", "dev", "test")}
    is_fold = data == "dev" and config is not None and bool(config.fold)
    source = task.train if is_fold else splits.get(data, data)
    if not source:
        raise UserError(f"--data={data}: {workdir} says of none; name a file")
    examples = task.read(source, labelled=labelled)
    if is_fold:
        assert config is not None
        examples = config.held_out(examples)
    step = latest_step(checkpoint) if step is None else step
    return Opened(model, task, config, examples, step)


def features_of(model: Portable, task: AnyTask, examples: Sequence[Any]) -> Features:
    """Examples of a task as the model's token sequences.

    Raises:
      UserError: the model cannot read them.
    """
    limit = min(task.max_seq_length, model.architecture.max_position_embeddings)
    features: Features = task.features(examples, model.tokenizer, limit)
    check_token_types(features, model.architecture.type_vocab_size, model.tokenizer)
    return features


def score_examples(opened: Opened, data: Examples) -> Scores:
    """What a model says of examples of its task."""
    model, task, config = opened.model, opened.task, opened.config
    mesh = make_mesh()
    structure = structure_of(model, parallelism(mesh, model.numerics))
    score = TaskScores(
        task,
        data,
        structure,
        model.numerics,
        mesh,
        tokenizer=model.tokenizer,
        batch_size=4 * (config.batch_size if config else FinetuneConfig.batch_size),
    )
    return score(rules.put_params(model.params, mesh, structure.axes))


def _evaluate_task(
    workdir: epath.Path,
    step: int | None,
    weights: str,
    data: str,
    predictions_path: epath.PathLike | None,
    overrides: Sequence[str],
) -> Evaluated:
    labelled = predictions_path is None
    with hosts.agreement():
        if predictions_path is not None:
            check_path(epath.Path(predictions_path))
        opened = open_task(workdir, step, weights, data, overrides, labelled=labelled)
        task, config, examples = opened.task, opened.config, opened.examples
        if labelled:
            task.check_model("config.task", opened.model.architecture)
        features = features_of(opened.model, task, examples)
        baseline = _baseline(task, config, examples) if labelled else {}
    found = score_examples(opened, Examples(examples, features, labelled))
    if predictions_path is not None and hosts.is_primary():
        write(epath.Path(predictions_path), task, Predicted(found.logits, features, examples))
    return Evaluated(data, opened.step, found.metrics, baseline)


def _task(model: Portable, config: FinetuneConfig | None, overrides: Sequence[str]) -> AnyTask:
    """The task that the model was fine-tuned on or that its head is for, with overrides."""
    is_named = any(flag.startswith(("--config.task=", "--config.task.name=")) for flag in overrides)
    if is_named and known_task(model) is None:
        fields: Plain = {"name": SimilarityTask.called()}  # the overrides change it
    else:
        fields = to_plain(task_of(model))
    if config:
        fields = to_plain(config.task) | settings(fields)
    given = ConfigDict({"task": _with_tuples(fields)})
    changed = with_overrides(FinetuneConfig, given, overrides)["task"]
    task: AnyTask = build(Task, changed, "config.task")  # type: ignore[type-abstract]
    task = task.with_labels(model.labels)
    parts = parts_of(model.params)
    if missing := [part for part in task.head.parts(model.architecture) if part not in parts]:
        raise UserError(f"config.task.name={task.called()}: the model has no {missing[0]}")
    names = task.label_names
    in_other_order = names != model.labels and {*names} == {*model.labels}
    if names and (len(names) != model.outputs or in_other_order):
        raise UserError(
            f"config.task.labels: must be the model's {model.outputs}, in their order: "
            f"{', '.join(model.labels)}"
        )
    return task


def _with_tuples(value: Any) -> Any:
    """Plain values whose lists are tuples, as recipes have them."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def _baseline(
    task: AnyTask, config: FinetuneConfig | None, examples: Sequence[Any]
) -> dict[str, float]:
    if not task.train:
        return {}
    try:
        train = task.read(task.train)
    except UserError as error:  # it may have moved, and the scores do not need it
        _log.warning(f"no baseline, since the training examples cannot be read: {error}")
        return {}
    return task.baseline(config.chosen(train) if config else train, examples)


class Trained(NamedTuple):
    """A checkpoint of pretraining, restored.

    Attributes:
      config: configuration of the stage that the checkpoint was trained in.
      model: structure of the model.
      params: parameters, on a mesh; those of a teacher beside them.
      step: step of the checkpoint.
    """

    config: PretrainConfig
    model: Model
    params: Params
    step: int


def load_trained(
    workdir: epath.Path, mesh: Mesh, step: int | None = None, weights: str = TRAINED
) -> Trained:
    """Restores the parameters of a pretraining run onto a mesh.

    Args:
      workdir: directory of the run.
      mesh: mesh for the parameters; may differ from the run's.
      step: checkpoint to restore; None for the newest.
      weights: which, see `bert_jax.train.weights`.

    Raises:
      UserError: `workdir` has no run or no such checkpoint.
    """
    config = read_pretrain_config(workdir / "config.json")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        params, step = checkpoints.read_params(step, weights)
    teachers = Teachers(config, load_tokenizer(workdir))
    if changed := other_data(read_json(workdir / "data.json"), teachers.fingerprints):
        raise UserError(f"{workdir} learned from another teacher: {'; '.join(changed)}")
    config = config.stage_of(step).config
    model = stage_model(config, mesh, parts_of(params), teachers.architecture(config))
    check_params(workdir / "checkpoints" / str(step), model, params)
    beside = teachers.beside(config, mesh, model.axes)
    placed = rules.put_params(params, mesh, model.axes) | beside
    return Trained(config, model, placed, step)

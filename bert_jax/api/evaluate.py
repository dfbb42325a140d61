"""Scores a checkpoint: of pretraining on held-out documents, of fine-tuning on examples."""

from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from bert_jax.config import build_finetune_config, read_config, read_json
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.interop.formats import read
from bert_jax.model.heads import parts_of
from bert_jax.objective.finetuning import FineTuning
from bert_jax.objective.pretraining import PreTraining
from bert_jax.parallel import hosts
from bert_jax.parallel.mesh import make_mesh
from bert_jax.tasks.registry import build_task
from bert_jax.train import build
from bert_jax.train.checkpoints import latest_step
from bert_jax.train.evaluation import Evaluation
from bert_jax.train.scoring import Examples, Scoring


class Evaluated(NamedTuple):
    """What a checkpoint scores.

    Attributes:
      split: "heldout" of pretraining, `data` of fine-tuning.
      step: of the checkpoint.
      scores: by metric; losses in nats, accuracies in [0, 1].
      baselines: what a model that looks at nothing would score, for some metrics.
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
      workdir: of the training run.
      step: which checkpoint; None for the newest, of fine-tuning the best.
      store: of pretraining: whose held-out documents to score on; None for that of the run.
      data: of fine-tuning: "train", "dev", "test", or another file or tfds:NAME:SPLIT.
      predictions: of fine-tuning: file to write the predictions to, without a look at labels.

    Raises:
      UserError: there is no such checkpoint or data, or they do not fit together.
    """
    workdir = epath.Path(workdir)
    with hosts.agreement():
        is_task = "finetune" in read_json(workdir / "config.json")
    if is_task:
        return _evaluate_task(workdir, step, data, predictions)
    return _evaluate_pretraining(workdir, step, store)


def _evaluate_pretraining(
    workdir: epath.Path, step: int | None, store_path: str | None
) -> Evaluated:
    with hosts.agreement():
        config = read_config(workdir / "config.json")
        store = build.open_data(store_path or config.data.store)
        if store.wordpiece.vocab_hash != load_wordpiece(workdir).vocab_hash:
            raise UserError(
                f"{store.path} has another vocabulary than {workdir}: "
                f"prepare it with --vocab={workdir}"
            )
    build.check_same(config, store)
    mesh = make_mesh()
    trained = build.load_trained(workdir, mesh, step)
    masking = build.build_masking(trained.config.data, trained.wordpiece)
    objective = PreTraining(trained.model.graphdef, masking, trained.config.seed)
    evaluation = Evaluation(trained.config, store, objective, mesh)
    scores = evaluation(trained.params)
    return Evaluated("heldout", trained.step, scores, evaluation.baselines())


def _evaluate_task(
    workdir: epath.Path, step: int | None, data: str, predictions_path: epath.PathLike | None
) -> Evaluated:
    with hosts.agreement():
        config = build_finetune_config(read_json(workdir / "config.json")["finetune"])
        checkpoint = workdir if step is not None else workdir / "best"
        model = read(checkpoint, step)
        task = build_task(config.task.name, config.task.options, model.labels)
        splits = {split: getattr(config.task, split) for split in ("train", "dev", "test")}
        source = splits.get(data, data)
        if not source:
            raise UserError(f"--data={data}: the run had none; name a file")
        labelled = predictions_path is None
        examples = task.read(source, labelled=labelled)
        features = task.features(examples, model.wordpiece, config.task.max_seq_length)
        baseline = task.baseline(task.read(config.task.train), examples) if labelled else {}
    mesh = make_mesh()
    graphdef = build.build_model(
        model.config, mesh, parts_of(model.params), task.num_labels
    ).graphdef
    score = Scoring(
        task,
        Examples(examples, features, labelled),
        FineTuning(graphdef, task.head),
        model.config,
        mesh,
        pad_id=model.wordpiece.pad_id,
        batch_size=4 * config.batch_size,
    )
    step = latest_step(checkpoint) if step is None else step
    metrics, predictions = score(build.put_params(model.params, mesh))
    if predictions_path and hosts.is_primary():
        task.write_predictions(epath.Path(predictions_path), examples, predictions)
    return Evaluated(data, step, metrics, baseline)

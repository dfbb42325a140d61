"""Scores a checkpoint: of pretraining on held-out documents, of fine-tuning on examples."""

import argparse
import json
from collections.abc import Mapping, Sequence

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
from bert_jax.tasks.protocol import build_task
from bert_jax.train import build
from bert_jax.train.checkpoints import latest_step
from bert_jax.train.evaluation import Evaluation
from bert_jax.train.scoring import Examples, Scoring


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="bert-jax evaluate",
        description="Scores a checkpoint of pretraining on held-out documents, always the same "
        "examples under the same masks, or one of fine-tuning on the examples of a split, beside "
        "what a model that looks at nothing would reach.",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of the training run")
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="which checkpoint (default: the newest, of fine-tuning the best)",
    )
    parser.add_argument(
        "--store",
        metavar="DIR",
        help="token store whose held-out documents to score on (default: that of the training run)",
    )
    parser.add_argument(
        "--data",
        default="dev",
        metavar="SOURCE",
        help="of fine-tuning: train, dev, test, or another file or tfds:NAME:SPLIT (default: dev)",
    )
    parser.add_argument(
        "--predictions",
        metavar="PATH",
        help="of fine-tuning: write the predictions there, and do not look at labels",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    hosts.add_arguments(parser)
    arguments = parser.parse_args(argv)
    hosts.connect(arguments)

    workdir = epath.Path(arguments.workdir)
    with hosts.agreement():
        is_task = "finetune" in read_json(workdir / "config.json")
    evaluate = evaluate_task if is_task else evaluate_pretraining
    split, step, scores, baselines = evaluate(workdir, arguments)
    if not hosts.is_primary():
        return
    if arguments.json:
        print(json.dumps({"step": step, split: scores, "baseline": baselines}))
        return
    print(f"{f'step {step}':<20}{'model':>10}{'baseline':>10}")
    for name, value in scores.items():
        baseline = f"{baselines[name]:>10.4f}" if name in baselines else ""
        print(f"{name:<20}{value:>10.4f}{baseline}")


Result = tuple[str, int, Mapping[str, float], Mapping[str, float]]


def evaluate_pretraining(workdir: epath.Path, arguments: argparse.Namespace) -> Result:
    """ "heldout", the step, its scores and the baselines."""
    with hosts.agreement():
        config = read_config(workdir / "config.json")
        store = build.open_data(arguments.store or config.data.store)
        if store.wordpiece.vocab_hash != load_wordpiece(workdir).vocab_hash:
            raise UserError(
                f"{store.path} has another vocabulary than {workdir}: "
                f"prepare it with --vocab={workdir}"
            )
    build.check_same(config, store)
    mesh = make_mesh()
    trained = build.load_trained(workdir, mesh, arguments.step)
    masking = build.build_masking(trained.config.data, trained.wordpiece)
    objective = PreTraining(trained.model.graphdef, masking, trained.config.seed)
    evaluation = Evaluation(trained.config, store, objective, mesh)
    return "heldout", trained.step, evaluation(trained.params), evaluation.baselines()


def evaluate_task(workdir: epath.Path, arguments: argparse.Namespace) -> Result:
    """The split, the step, its scores and the baselines."""
    with hosts.agreement():
        config = build_finetune_config(read_json(workdir / "config.json")["finetune"])
        checkpoint = workdir if arguments.step is not None else workdir / "best"
        model = read(checkpoint, arguments.step)
        task = build_task(config.task.name, config.task.options, model.labels)
        splits = {split: getattr(config.task, split) for split in ("train", "dev", "test")}
        source = splits.get(arguments.data, arguments.data)
        if not source:
            raise UserError(f"--data={arguments.data}: the run had none; name a file")
        labelled = arguments.predictions is None
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
    step = latest_step(checkpoint) if arguments.step is None else arguments.step
    metrics, predictions = score(build.put_params(model.params, mesh))
    if arguments.predictions and hosts.is_primary():
        task.write_predictions(epath.Path(arguments.predictions), examples, predictions)
    return arguments.data, step, metrics, baseline

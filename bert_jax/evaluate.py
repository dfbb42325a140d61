"""Scores a checkpoint of a pretraining run on held-out documents."""

import argparse
import json
from collections.abc import Sequence

from etils import epath

from bert_jax.config import read_config
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.objective.pretraining import PreTraining
from bert_jax.parallel import hosts
from bert_jax.parallel.mesh import make_mesh
from bert_jax.train import build
from bert_jax.train.evaluation import Evaluation


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="bert-jax evaluate",
        description="Scores a checkpoint on held-out documents, always the same examples under the "
        "same masks, beside what a model that ignores context would reach.",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of the training run")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: newest)")
    parser.add_argument(
        "--store",
        metavar="DIR",
        help="token store whose held-out documents to score on (default: that of the training run)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    hosts.add_arguments(parser)
    arguments = parser.parse_args(argv)
    hosts.connect(arguments)

    workdir = epath.Path(arguments.workdir)
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

    scores, baselines = evaluation(trained.params), evaluation.baselines()
    if not hosts.is_primary():
        return
    if arguments.json:
        print(json.dumps({"step": trained.step, "heldout": scores, "baseline": baselines}))
        return
    print(f"{'step ' + str(trained.step):<16}{'model':>10}{'baseline':>10}")
    for name, value in scores.items():
        baseline = f"{baselines[name]:>10.4f}" if name in baselines else ""
        print(f"{name:<16}{value:>10.4f}{baseline}")

"""`bert-jax sweep`: runs a recipe with every combination of some values."""

from collections.abc import Sequence

from bert_jax.cli import flags, stopping
from bert_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    parser = flags.Parser(
        prog="bert-jax sweep",
        description="Runs a recipe of pretraining or fine-tuning with every combination of the "
        "values of a grid and with several seeds, one run after another, or one on each GPU. "
        "WORKDIR then has a directory for each run, sweep.json and sweep.png.",
        formatter_class=flags.HelpFormatter,
        epilog=stopping.HELP + "\n\nexamples:\n"
        "  bert-jax sweep --config=quickstart --workdir=sweeps/rate "
        "--config.data.store=stores/mine --grid optimizer.learning_rate=1e-3,3e-3 --seeds=3\n"
        "  bert-jax sweep --config=finetune:classification --workdir=sweeps/reviews --grid bert "
        "--config.init_from=runs/base --config.task.train=train.tsv --config.task.dev=dev.tsv",
        allow_abbrev=False,
    )
    flags.add_config(parser, "the recipe and overrides, as for pretrain or finetune")
    flags.add_workdir(parser, "directory of the sweep; one that is in it is resumed")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=VALUE,...",
        help="values of a field; may be given again. bert: batch size, learning rate and epochs "
        "of BERT's fine-tuning (Devlin et al. 2019)",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs of each combination (default: 1)"
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="run on N GPUs at a time, one a run"
    )
    arguments, overrides = parser.parse_known_args(argv)
    given = flags.config_arguments(arguments.config, overrides)
    flags.check_files(overrides)
    if arguments.seeds < 1 or arguments.gpus < 0:
        raise UserError("--seeds must be positive, and --gpus not negative")

    from bert_jax.api.sweep import GRIDS, sweep

    grid: dict[str, Sequence[str]] = {}
    for text in arguments.grid:
        field, _, values = text.partition("=")
        if text in GRIDS:
            grid |= GRIDS[text]
        elif not field or not all(values.split(",")):
            raise UserError(
                f"--grid {text}: write FIELD=VALUE,VALUE, or one of: {', '.join(GRIDS)}"
            )
        else:
            grid[field.removeprefix("config.")] = values.split(",")
    is_over = sweep(given, arguments.workdir, grid, seeds=arguments.seeds, gpus=arguments.gpus)
    return stopping.exit_code(is_over)

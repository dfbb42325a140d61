"""`bert-jax pretrain`: trains BERT on a token store."""

from collections.abc import Sequence

from etils import epath

from bert_jax.cli import flags, hosts, stopping


def main(argv: Sequence[str]) -> int:
    parser = flags.Parser(
        prog="bert-jax pretrain",
        description="Pretrains BERT: masked LM and next sentence prediction on a token store.",
        formatter_class=flags.HelpFormatter,
        epilog=flags.FIELDS_HELP
        + stopping.HELP
        + "SIGUSR1: the next 5 steps are profiled into WORKDIR/profile.\n\nexample:\n"
        "  bert-jax pretrain --config=bert:base --workdir=runs/base "
        "--config.data.store=stores/mine",
        allow_abbrev=False,
    )
    flags.add_config(
        parser,
        "the recipe, by name or as a file, for example bert:base or mine.py; --config.FIELD=VALUE "
        "overrides a field, for example --config.steps=2000 --config.data.batch_size=64",
    )
    flags.add_workdir(
        parser,
        "directory for checkpoints, metrics and curves; a run that is in it is resumed",
    )
    hosts.add_arguments(parser)
    arguments, overrides = parser.parse_known_args(argv)
    given = flags.config_arguments(arguments.config, overrides)
    if hosts.is_alone(arguments):
        # A run that goes on does not read the weights that it started from; they may be gone.
        goes_on = (epath.Path(arguments.workdir) / "config.json").exists()
        flags.check_files(
            [x for x in overrides if not (goes_on and x.startswith("--config.init_from="))]
        )

    from bert_jax.config.pretraining import PretrainConfig
    from bert_jax.config.recipes import load_config

    config = load_config(PretrainConfig, given)
    hosts.connect(arguments)

    from bert_jax.api.pretrain import pretrain
    from bert_jax.interop.initial import follow_weights
    from bert_jax.parallel.hosts import agreement, print_once

    with agreement():
        config, lines = follow_weights(config, overrides, epath.Path(arguments.workdir))
    for line in lines:
        print_once(line)
    return stopping.exit_code(pretrain(config, arguments.workdir))

"""`bert-jax finetune`: fine-tunes a trained model on a task."""

from collections.abc import Sequence

from bert_jax.cli import flags, hosts, stopping


def main(argv: Sequence[str]) -> int:
    parser = flags.Parser(
        prog="bert-jax finetune",
        description="Fine-tunes a trained BERT on a task: classification, regression, tagging or "
        "answering.",
        formatter_class=flags.HelpFormatter,
        epilog=flags.FIELDS_HELP
        + stopping.HELP
        + "WORKDIR/best is the best model by the first metric on the dev examples.\n\nexample:\n"
        "  bert-jax finetune --config=finetune:tagging --workdir=runs/ner "
        "--config.init_from=runs/base --config.task.train=train.conll --config.task.dev=dev.conll",
        allow_abbrev=False,
    )
    flags.add_config(
        parser,
        "the recipe, by name or as a file, for example finetune:tagging; --config.FIELD=VALUE "
        "overrides a field, for example --config.init_from=runs/base --config.epochs=4",
    )
    flags.add_workdir(
        parser,
        "directory for checkpoints, metrics, results and predictions; a run that is in it "
        "is resumed",
    )
    hosts.add_arguments(parser)
    arguments, overrides = parser.parse_known_args(argv)
    given = flags.config_arguments(arguments.config, overrides)
    if hosts.is_alone(arguments):
        flags.check_files(overrides)

    from bert_jax.config.finetuning import FinetuneConfig
    from bert_jax.config.recipes import load_config

    config = load_config(FinetuneConfig, given)
    hosts.connect(arguments)

    from bert_jax.api.finetune import finetune

    return stopping.exit_code(finetune(config, arguments.workdir))

"""`bert-jax publish`: writes a run as the Hugging Face Hub takes it, and uploads it if asked to."""

from collections.abc import Sequence

from bert_jax.cli import flags
from bert_jax.terminal import say


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(
        prog="bert-jax publish",
        description="Writes a run as directories that transformers and the Hugging Face Hub take: "
        "OUTPUT/main with the model, its tokenizer and a card from the records of the run, and "
        "OUTPUT/step-N for each checkpoint of a pretraining run, and for the weights at step 0.",
        formatter_class=flags.HelpFormatter,
        epilog="examples:\n"
        "  bert-jax publish runs/base published/base --license=apache-2.0 --language=en\n"
        "  bert-jax publish runs/base published/base --upload=my-name/my-bert",
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="directory of a run")
    parser.add_argument("output", metavar="OUTPUT", help="local directory, new or empty")
    parser.add_argument("--name", default="", help="name of the model in its card")
    flags.add_weights(parser)
    parser.add_argument("--license", default="", metavar="ID", help="as the Hub spells it: mit")
    parser.add_argument(
        "--language",
        type=lambda codes: codes.split(","),
        default=[],
        metavar="CODE,...",
        help="codes of languages: en,de",
    )
    parser.add_argument(
        "--limits", default="", metavar="TEXT", help="intended use and limits, for the card"
    )
    parser.add_argument(
        "--upload",
        default="",
        metavar="OWNER/NAME",
        help="upload to this repository of the Hub, each step to a revision; needs huggingface_hub "
        "and its login (default: upload nothing)",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    arguments = parser.parse_args(argv)
    flags.check_model(arguments.workdir)

    from bert_jax.api.publish import publish

    for revision in publish(**vars(arguments)):
        say(f"{arguments.output}/{revision}")

"""`bert-jax <verb>`, the same as `python -m bert_jax <verb>`."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from bert_jax import __version__
from bert_jax.errors import TrainingDiverged, UserError

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
VERBS = {
    "prepare": "tokenise documents into a store to train from",
    "pretrain": "train BERT on a token store",
    "finetune": "fine-tune a trained model: classification, regression, tagging, answering",
    "evaluate": "score a checkpoint on held-out documents",
    "predict": "use a trained model: masks, pairs, vectors, attention, classes, tags, answers",
    "export": "write a model as StableHLO, to run without bert_jax",
    "convert": "convert a model between the formats of Hugging Face, Google and bert_jax",
    "plan": "compile a training step for TPUs without having any: memory, speed, collectives",
    "plot": "draw the curves of training runs",
}
USAGE = "\n".join(
    [
        f"bert-jax {__version__}: pretrain BERT with JAX",
        "",
        "usage: bert-jax VERB [arguments]",
        "       bert-jax VERB --help",
        "",
        *(f"  {verb:<10} {purpose}" for verb, purpose in VERBS.items()),
        "",
        "exit codes: 0 done, 2 an error in arguments or files, 75 stopped and saved (the same",
        "command resumes), 130 interrupted; all of them in docs/troubleshooting.md",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns its exit code, as docs/troubleshooting.md lists them."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in VERBS:
        print(f"bert-jax: unknown verb {argv[0]!r}: use one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    # Libraries log internals through absl; what a user must know is printed.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        code: int = importlib.import_module(f"bert_jax.cli.{argv[0]}").main(argv[1:]) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"bert-jax {argv[0]}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.filename is None:  # no path that the user could correct
            raise
        print(f"bert-jax {argv[0]}: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print(f"bert-jax {argv[0]}: error: gs:// needs gcsfs: pip install gcsfs", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bert-jax {argv[0]}: interrupted", file=sys.stderr)
        return 130
    except TrainingDiverged as error:
        print(f"bert-jax {argv[0]}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

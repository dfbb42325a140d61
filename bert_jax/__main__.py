"""`bert-jax <verb>`, the same as `python -m bert_jax <verb>`."""

import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_jax import __version__
from bert_jax.errors import TrainingDiverged, UserError
from bert_jax.terminal import is_closed_output, output_errors, printable

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
VERBS = {
    "prepare": "tokenise documents into a store to train from",
    "inspect": "show what is in a store: documents, lengths, pieces, examples",
    "pretrain": "train BERT on a token store",
    "finetune": "fine-tune a trained model: classification, regression, tagging, answering",
    "sweep": "run a recipe with every combination of some values, and compare them",
    "evaluate": "score a checkpoint on held-out documents",
    "predict": "use a trained model: masks, pairs, vectors, attention, classes, tags, answers",
    "export": "write a model as StableHLO or ONNX, to run without bert_jax",
    "convert": "convert a model between the formats of Hugging Face, Google and bert_jax",
    "prune": "leave out the heads and layers that a task needs least",
    "plan": "compile a training step for TPUs without having any: memory, speed, collectives",
    "plot": "draw the curves of training runs",
    "report": "describe training runs in one page",
    "publish": "write a run as the Hugging Face Hub takes it, with a card; upload it",
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
# Errors of a device; others are mistakes in a path or its permissions.
DEVICE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class OneLine(logging.Formatter):
    """Prints the message of a log record alone, in one line."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns its exit code, as docs/troubleshooting.md lists them."""
    argv = sys.argv[1:] if argv is None else list(argv)
    verb = argv[0] if argv else ""
    if sys.stdout is None:  # it was closed before Python started
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (to the end)
    try:
        try:
            return _run(verb, argv[1:])
        finally:
            with output_errors():
                sys.stdout.flush()
    except UserError as error:
        return _fail(verb, f"error: {error}", 2)
    except OSError as error:
        if is_closed_output(error):
            return EXIT_BROKEN_PIPE
        if error.filename is None and error.errno not in DEVICE_ERRORS:
            raise  # no path that the user could correct
        place = "" if error.filename is None else f"{os.fspath(error.filename)}: "
        code = 1 if error.errno in DEVICE_ERRORS else 2
        return _fail(verb, f"error: {place}{error.strerror or error}", code)
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        return _fail(verb, "error: gs:// needs gcsfs: pip install gcsfs", 2)
    except KeyboardInterrupt:
        return _fail(verb, "interrupted", 130)
    except TrainingDiverged as error:
        return _fail(verb, str(error), 1)


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("", "-h", "--help"):
        print(USAGE)
        return 0 if verb else 2
    if verb not in VERBS:
        return _fail(verb, f"unknown verb {verb!r}: use one of {', '.join(VERBS)}", 2)
    # Libraries log internals through absl, and errors that they raise as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    logging.basicConfig(handlers=[handler])
    from bert_jax import freed_memory
    from bert_jax.cli import compiled_programs

    freed_memory.keep()
    compiled_programs.keep()
    return importlib.import_module(f"bert_jax.cli.{verb}").main(arguments) or 0


def _fail(verb: str, message: str, code: int) -> int:
    print(f"bert-jax{f' {verb}' if verb in VERBS else ''}: {printable(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

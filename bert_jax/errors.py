"""The exceptions that the command line reports in one line, and the exit code of stopped runs."""

from typing import NoReturn

EXIT_STOPPED = 75  # EX_TEMPFAIL: saved on SIGTERM or SIGINT; the same command resumes


class UserError(Exception):
    """Bad input: a field, a file or a flag. Exit code 2.

    The message is one line that says what is wrong and what to do. It is raised before training
    starts.
    """


class TrainingDiverged(Exception):
    """The loss is not a finite number. Exit code 1.

    The message says at which step and what to try; earlier checkpoints are kept.
    """


def throw(error: UserError) -> NoReturn:
    """Raises the error. Readers of many lines call this for a bad one, unless told to skip it."""
    raise error

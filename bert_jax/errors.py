"""The exceptions that the command line reports in one line."""


class UserError(Exception):
    """Bad input: a field, a file or a flag. Exit code 2.

    The message is one line that says what is wrong and what to do. It is raised before training
    starts.
    """


class TrainingDiverged(Exception):
    """The loss is not a finite number. Exit code 1.

    The message says at which step and what to try; earlier checkpoints are kept.
    """

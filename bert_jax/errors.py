"""The exceptions that the command line reports in one line."""


class UserError(Exception):
    """Bad input: a field, a file or a flag. Exit code 2.

    The message is one line that names what is wrong and what to do. It is raised before anything is
    trained.
    """


class TrainingDiverged(Exception):
    """The loss is not a finite number. Exit code 1.

    The message says at which step and what to try; checkpoints of before are kept.
    """

"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """Bad input: a field, a file or a flag.

    The message is one line that names what is wrong and what to do. The command line prints it and
    exits with code 2, before any device work.
    """

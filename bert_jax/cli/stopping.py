"""How a training run that a signal stopped ends, for whoever started the command."""

EXIT_STOPPED = 75  # EX_TEMPFAIL: saved on SIGTERM or SIGINT; the same command goes on
HELP = (
    "A run that was stopped or killed goes on when the same command is given again. "
    f"Exit code {EXIT_STOPPED}: stopped by SIGTERM or Ctrl-C, everything saved. "
)


def exit_code(is_over: bool) -> int:
    """The exit code of a run that is over, or that a signal stopped."""
    return 0 if is_over else EXIT_STOPPED

"""Exit codes of training runs, and their help text."""

from bert_jax.errors import EXIT_STOPPED

HELP = (
    "Give the same command again to resume a run that was stopped or killed. "
    f"Exit code {EXIT_STOPPED}: stopped by SIGTERM or Ctrl-C, everything saved. "
)


def exit_code(is_over: bool) -> int:
    """The exit code of a run that is over, or was stopped by a signal."""
    return 0 if is_over else EXIT_STOPPED

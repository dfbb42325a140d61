"""Exit codes of training runs, and their help text."""

EXIT_STOPPED = 75  # EX_TEMPFAIL: saved on SIGTERM or SIGINT; the same command resumes
HELP = (
    "Give the same command again to resume a run that was stopped or killed. "
    f"Exit code {EXIT_STOPPED}: stopped by SIGTERM or Ctrl-C, everything saved. "
)


def exit_code(is_over: bool) -> int:
    """The exit code of a run that is over, or was stopped by a signal."""
    return 0 if is_over else EXIT_STOPPED

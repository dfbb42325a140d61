"""The flags of a run on several hosts."""

import argparse

from bert_jax.cli import compiled_programs
from bert_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `connect` reads."""
    group = parser.add_argument_group(
        "several hosts",
        "Give the same command on every host. On TPU VMs, Slurm and Open MPI the processes find "
        "each other; elsewhere give the first three flags too.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process-id", type=int, metavar="I", help="this process, from 0")
    group.add_argument(
        "--heartbeat-timeout",
        type=int,
        default=100,
        metavar="SECONDS",
        help="end with an error if a process is silent for this long (default: 100)",
    )
    group.add_argument(
        "--platform",
        choices=("tpu", "gpu", "cpu"),
        help="refuse to run on any other platform (default: any)",
    )


def is_alone(arguments: argparse.Namespace) -> bool:
    """Whether no flag says that there are other processes."""
    return _process(arguments) == (None, None, None)


def _process(arguments: argparse.Namespace) -> tuple[str | None, int | None, int | None]:
    return arguments.coordinator, arguments.num_processes, arguments.process_id


def connect(arguments: argparse.Namespace) -> None:
    """Joins the other processes of the run, if there are any; see `parallel.hosts.connect`.

    Raises:
      UserError: the flags are incomplete or wrong, or `parallel.hosts.connect` raises it.
    """
    if None in _process(arguments) and not is_alone(arguments):
        raise UserError("--coordinator, --num-processes and --process-id belong together: give all")
    if arguments.process_id is not None and not 0 <= arguments.process_id < arguments.num_processes:
        raise UserError(
            f"--process-id={arguments.process_id} must be from 0 to --num-processes - 1 = "
            f"{arguments.num_processes - 1}"
        )
    from bert_jax.parallel import hosts

    hosts.connect(
        coordinator=arguments.coordinator,
        num_processes=arguments.num_processes,
        process_id=arguments.process_id,
        heartbeat_timeout=arguments.heartbeat_timeout,
        platform=arguments.platform,
    )
    compiled_programs.forget_on_gpus()

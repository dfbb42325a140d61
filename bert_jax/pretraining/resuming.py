"""Whether a run may begin, resume or branch, and where it then starts."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping

from etils import epath

from bert_jax.config.overrides import differences, flatten
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.saved import read_pretrain_config
from bert_jax.data.batch_sizes import BatchSizes
from bert_jax.data.stores import Store
from bert_jax.errors import UserError
from bert_jax.fields import resumable
from bert_jax.interop.initial import initial_params
from bert_jax.interop.teachers import FINGERPRINT, Teachers
from bert_jax.parallel import hosts
from bert_jax.pretraining.data import configured_stores, identity, passed_before
from bert_jax.pretraining.stages import trained_parts
from bert_jax.storage import read_json
from bert_jax.train.checkpoints import DamagedCheckpoint, latest_step
from bert_jax.train.checksums import weights_fingerprint
from bert_jax.train.run import Origin, parse_origin
from bert_jax.train.workdirs import (
    FIRST_ROW,
    check_same_run,
    has_run,
    other_data,
    start_of,
    starting_step,
)

# Beginnings of lines about fields in which a branch may differ from its run; the rows of its data
# are the same whatever `SAME_ROWS` are.
SAME_ROWS = ("data.batch_size:", "data.start_batch_size:", "data.growth_")
BRANCH = ("branch_from:", "optimizer.", "masking.", "data.max_passes:", *SAME_ROWS)


def check_same(config: PretrainConfig, data: Mapping[str, str]) -> None:
    """Raises UserError if a process has another config or other data than process 0.

    Args:
      config: configuration of the run.
      data: identifies its data.
    """
    mine = config.to_dict() | dict(data)
    first, *others = map(json.loads, hosts.gather(json.dumps(mine)))
    for process, other in enumerate(others, start=1):
        changed = differences(first, other)
        if changed:
            raise UserError(
                f"process {process} differs from process 0: {'; '.join(changed)}. "
                f"Start all with the same config and token store"
            )


def check_can_go_on(
    workdir: epath.Path, config: PretrainConfig, store: Store, data: Mapping[str, str]
) -> int | None:
    """Checks that the workdir is new, or that its run can go on with this config and these data.

    Returns:
      The step of the checkpoint to go on from; None to begin.

    Raises:
      UserError: the run in it is another one, or already has more steps.
    """
    if not has_run(workdir):
        return starting_step(workdir, None, config.to_dict(), config.resume_from)
    saved = read_pretrain_config(workdir / "config.json").to_dict()
    done = starting_step(workdir, saved, config.to_dict(), config.resume_from)
    step = done or 0
    # A phase that has not begun may change, too.
    later = [s.name for s in config.stages() if s.name and s.first_step >= step]
    changed = differences(saved, config.to_dict())

    def weights() -> str:
        if not config.init_from:
            return ""
        return weights_fingerprint(
            initial_params(config, store.tokenizer, trained_parts(config, store))[0]
        )

    free = [*resumable(config), *moved(config), *later]
    check_same_run(workdir, changed, data, weights, free)
    if step > config.last_step:
        raise UserError(
            f"config.steps={config.steps}, but {workdir} has {step - config.first_step} steps "
            "already: choose another --workdir or more steps"
        )
    return done


def with_origin(config: PretrainConfig, workdir: epath.Path) -> PretrainConfig:
    """The config with the step from which a branch begins, if it names only the run.

    Raises:
      UserError: that run has no checkpoint.
    """
    origin = parse_origin(config.branch_from)
    if not origin.workdir or origin.step is not None:
        return config
    if has_run(workdir):
        saved = parse_origin(read_pretrain_config(workdir / "config.json").branch_from)
        if saved.workdir == origin.workdir:
            return dataclasses.replace(config, branch_from=str(saved))
    step = latest_step(origin.workdir) if epath.Path(origin.workdir).exists() else None
    if step is None:
        raise UserError(f"config.branch_from={origin}: no run with a checkpoint there")
    return dataclasses.replace(config, branch_from=str(origin._replace(step=step)))


def check_origin(config: PretrainConfig, store: Store, teachers: Teachers) -> int:
    """Checks that a branch goes on with the model, the teacher and the data of its run.

    Returns:
      The row of the data with which its first batch begins: that at which the run has arrived, or
      the first one if a phase of the branch has rows of another kind.

    Raises:
      UserError: there is no such run, or it is of another model or other data; the message lists
        the differences.
    """
    origin = parse_origin(config.branch_from)
    run = epath.Path(origin.workdir)
    if not (run / "config.json").exists():
        raise UserError(f"config.branch_from={origin}: {run} holds no run")
    saved = read_pretrain_config(run / "config.json")
    if not saved.first_step < config.first_step <= saved.last_step:
        raise UserError(f"config.branch_from={origin}: {run} has no checkpoint of that step")
    before, after = saved.stage_of(config.first_step), config.stages()[0]
    changed = differences(before.config.to_dict(), after.config.to_dict())
    of_phase = [f"{path}{end}" for path in flatten(after.phase) for end in ":.["]
    if not {"data.store:", "data.mixture:"} & {*of_phase}:
        changed += other_data(read_json(run / "data.json"), identity(store))
    if config.objective.teacher:
        first = {FINGERPRINT: teachers.fingerprints[FINGERPRINT]}
        changed += other_data(read_json(run / "data.json"), first)
    same_rows = (*SAME_ROWS, *moved(config))
    free = (*resumable(config), *BRANCH, *same_rows, *of_phase)
    refused = [x for x in changed if not x.startswith(free)]
    if refused:
        raise UserError(
            f"config.branch_from={origin} is a run of another model or other data: "
            f"{'; '.join(refused)}. Give the values of that run, or new ones in config.phases"
        )
    for line in changed:
        hosts.print_once(f"other than in {run}: {line}", result=True)
    if any(x.startswith("data.") and not x.startswith(same_rows) for x in changed):
        return 0
    first_row = start_of(run).get(FIRST_ROW, 0) if before.first_step == saved.first_step else 0
    done = config.first_step - before.first_step
    return BatchSizes(before.config.data, first_row).first_row(done)


def passed_at_origin(config: PretrainConfig, same_rows: bool) -> dict[str, float]:
    """How often each source was passed where a branch begins to count its rows.

    Args:
      config: configuration of the branch.
      same_rows: whether its rows are those of the stage of its run, which began with the first.
    """
    run = epath.Path(parse_origin(config.branch_from).workdir)
    saved = read_pretrain_config(run / "config.json")
    if not any(stage.config.data.mixture for stage in saved.stages()):
        return {}
    step = saved.stage_of(config.first_step).first_step if same_rows else config.first_step
    return passed_before(saved, configured_stores(saved), step, start_of(run))


@contextlib.contextmanager
def other_origin(origin: Origin) -> Iterator[None]:
    """Adds to the error about a damaged checkpoint of a run from which other a branch can begin."""
    try:
        yield
    except DamagedCheckpoint as error:
        advice = (
            f": set config.branch_from={origin.workdir}@{error.whole[-1]}" if error.whole else ""
        )
        raise UserError(f"{error.fact}{advice}") from error


def moved(config: PretrainConfig) -> list[str]:
    """Beginnings of the lines of `differences` about the paths of stores and teachers."""
    names = ["data.store", "objective.teacher"]
    names += [f"data.mixture[{i}].store" for i in range(len(config.data.mixture))]
    for stage in config.stages() if config.phases else ():
        each = ["data.store", "objective.teacher"]
        each += [f"data.mixture[{i}].store" for i in range(len(stage.config.data.mixture))]
        names += [f"{stage.name}.{name}" for name in each]
    return [f"{name}:" for name in names]

"""Fine-tunes a trained BERT on a task: classification, regression, tagging or answering.

bert-jax finetune --config=configs/finetune.py:classification --config.init_from=MODEL \\
    --config.task.train=train.tsv --config.task.dev=dev.tsv --workdir=runs/task
"""

import argparse
import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from bert_jax.config import FinetuneConfig, RunConfig, load_finetune_config, read_json
from bert_jax.data.batches import prefetch
from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError
from bert_jax.interop.formats import read
from bert_jax.interop.initial import replace_params, without_parts
from bert_jax.interop.portable import Portable
from bert_jax.model.heads import parts_of
from bert_jax.objective.finetuning import FineTuning
from bert_jax.parallel import hosts, rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.report.confusion import draw_confusion
from bert_jax.report.curves import draw_curves
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.protocol import AnyTask, build_task
from bert_jax.train import build
from bert_jax.train.budget import Budget
from bert_jax.train.checkpoints import Checkpoints, latest_step
from bert_jax.train.loop import EXIT_STOPPED, train
from bert_jax.train.metrics import MetricsWriter, read_metrics
from bert_jax.train.optimizers import scale_by_depth
from bert_jax.train.profiling import Profiler
from bert_jax.train.scoring import Examples, Scoring
from bert_jax.train.state import Params, TrainState
from bert_jax.train.workdirs import check_workdir, claim_workdir

# A resumed run may change how it computes and reports, but not what it learns.
FREE_TO_CHANGE = (
    "finetune.mesh.",
    "finetune.log_every:",
    "finetune.model.attention:",
    "finetune.model.scan_layers:",
    "finetune.model.remat:",
    "model.attention:",
    "model.scan_layers:",
    "model.remat:",
)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="bert-jax finetune",
        description=__doc__.partition("\n")[0],
        epilog="A run that was stopped or killed goes on when the same command is given again. "
        f"Exit code {EXIT_STOPPED}: stopped by SIGTERM or Ctrl-C, everything saved. "
        "WORKDIR/best is the best model by the first metric on the dev examples.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="the recipe, for example configs/finetune.py:tagging; --config.FIELD=VALUE overrides "
        "a field of it, for example --config.init_from=runs/base --config.epochs=4",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="where checkpoints, metrics, results and predictions go; a run that is there already "
        "is resumed",
    )
    hosts.add_arguments(parser)
    arguments, overrides = parser.parse_known_args(argv)
    config = load_finetune_config([f"--config={arguments.config}", *overrides])
    hosts.connect(arguments)
    return finetune(config, epath.Path(arguments.workdir))


def finetune(config: FinetuneConfig, workdir: epath.Path) -> int:
    """Trains once, or once for each seed in a directory of its own; returns the exit code.

    Raises:
      UserError: config, model, data and workdir do not fit together.
    """
    with hosts.agreement():
        source = read(config.init_from, report=hosts.print_once)
        task, data = read_data(config, source)
    hosts.check_shared(workdir)
    for name, (examples, features, _) in data.items():
        counts = ", ".join(f"{count:,} {what}" for what, count in features.counts.items() if count)
        hosts.print_once(f"{name}: {len(examples):,} examples ({counts})")
    if config.seeds == 1:
        return train_once(config, workdir, source, task, data)
    runs = {
        workdir / f"seed{seed}": dataclasses.replace(config, seed=seed, seeds=1)
        for seed in range(config.seed, config.seed + config.seeds)
    }
    for run, one in runs.items():
        hosts.print_once(f"seed {one.seed}")
        code = train_once(one, run, source, task, data)
        if code:
            return code
    if hosts.is_primary():
        summarize_seeds(workdir, runs)
    return 0


def read_data(config: FinetuneConfig, source: Portable) -> tuple[AnyTask, dict[str, Examples]]:
    """The task with its labels, and the examples of each split.

    Raises:
      UserError: files cannot be read, or hold what the task does not take.
    """
    task = build_task(config.task.name, config.task.options)
    if config.task.max_seq_length > source.config.max_position_embeddings:
        raise UserError(
            f"config.task.max_seq_length={config.task.max_seq_length}, but {config.init_from} has "
            f"{source.config.max_position_embeddings} positions"
        )
    data = {}
    for split in ("train", "dev", "test"):
        name, labelled = getattr(config.task, split), split != "test" or config.task.test_labelled
        if not name:
            continue
        examples = task.read(name, labelled=labelled)
        if split == "train":
            task = task.with_labels_of(examples)
        features = task.features(examples, source.wordpiece, config.task.max_seq_length)
        data[split] = Examples(examples, features, labelled)
    if len(data["train"].features) < config.batch_size:
        raise UserError(
            f"config.batch_size={config.batch_size}, but {config.task.train} has only "
            f"{len(data['train'].features)} examples"
        )
    return task, data


def train_once(
    config: FinetuneConfig,
    workdir: epath.Path,
    source: Portable,
    task: AnyTask,
    data: Mapping[str, Examples],
) -> int:
    """Trains with one seed, then scores the best checkpoint; returns the exit code."""
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    batches = training_batches(config, source.wordpiece, data["train"].features, mesh)
    steps = math.ceil(config.epochs * batches.steps_per_epoch)
    run = run_config(config, source, steps)
    build.check_model(run.model, mesh)
    parts = ("pooler", task.head) if task.head == "sequence_classifier" else (task.head,)
    model = build.build_model(run.model, mesh, parts, task.num_labels)
    optimizer = build_optimizer(config, run)
    abstract_state, init_state = build.abstract_state(
        model, optimizer, mesh, zero1=config.mesh.zero1
    )
    objective = FineTuning(model.graphdef, task.head, run.model.hidden_dropout, config.freeze)
    score = {
        split: Scoring(
            task,
            examples,
            objective,
            run.model,
            mesh,
            pad_id=source.wordpiece.pad_id,
            batch_size=4 * config.batch_size,
        )
        for split, examples in data.items()
        if split != "train"
    }

    description = {
        "finetune": config.to_dict(),
        "model": dataclasses.asdict(run.model),
        "labels": task.label_names,
    }
    description = json.loads(json.dumps(description))
    identity = {split: fingerprint(examples.features) for split, examples in data.items()}
    with hosts.agreement():
        if hosts.is_primary():
            check_workdir(workdir, description, identity, FREE_TO_CHANGE, read=read_json)
            claim_workdir(workdir, description, identity, source.wordpiece)
            claim_workdir(workdir / "best", description, identity, source.wordpiece)

    done = latest_step(workdir) or 0
    baseline = task.baseline(data["train"].examples, data["dev"].examples)
    main_metric = next(iter(baseline))
    with (
        Checkpoints(workdir) as checkpoints,
        Checkpoints(workdir / "best") as best,
        MetricsWriter(workdir, done) as writer,
        Profiler(workdir / "profile") as profiler,
    ):
        if checkpoints.latest_step() is None:
            state = initial_state(config, source, task, init_state, mesh)
            writer.write(0, "baseline", baseline)
            progress = {}
        else:
            state, progress = checkpoints.restore(abstract_state)
            hosts.print_once(f"resuming at step {done}")

        def evaluate(state: TrainState) -> dict[str, float]:
            metrics = score["dev"](state.params).metrics
            reached = [x[main_metric] for x in read_metrics(workdir) if x["split"] == "heldout"]
            if metrics[main_metric] > max(reached, default=-math.inf):
                best.save(int(state.step), {"params": state.params}, metrics)
            return metrics

        every = max(1, batches.steps_per_epoch // config.evals_per_epoch)
        outcome = train(
            state,
            build.jit_train_step(run, objective, optimizer, abstract_state, mesh),
            device_batches(batches, done, steps, mesh),
            evaluate,
            checkpoints,
            writer,
            profiler,
            heads=objective.heads,
            first_step=done,
            steps=steps,
            log_every=config.log_every,
            eval_every=every,
            checkpoint_every=every,
            flops_per_token=0,
            peak_flops=None,
            budget=Budget(steps, 0, progress),
            target_mlm_accuracy=0,
            unlogged=progress.get("unlogged", {}),
        )
        if int(outcome.state.step) < steps:
            hosts.print_once(
                f"{outcome.stopped_by.name}: saved at step {int(outcome.state.step)}; run again to "
                f"go on"
            )
            return EXIT_STOPPED
    report(config, workdir, task, data, score, mesh)
    return 0


def training_batches(
    config: FinetuneConfig, wordpiece: WordPiece, features: Any, mesh: Mesh
) -> ExampleBatches:
    """This host's rows of every training batch."""
    sharding = rules.batch_sharding(mesh)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    return ExampleBatches(
        features,
        pad_id=wordpiece.pad_id,
        batch_size=config.batch_size,
        seed=config.seed,
        packing=config.packing,
        row_multiple=devices * config.optimizer.gradient_accumulation,
        host_rows=lambda num_rows: hosts.local_rows(sharding, num_rows),
    )


def device_batches(
    batches: ExampleBatches, first_step: int, steps: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """The batches of the steps to come, on the mesh."""
    return (build.put_batch(batch, mesh) for batch in prefetch(batches, first_step, steps))


def run_config(config: FinetuneConfig, source: Portable, steps: int) -> RunConfig:
    """What the compiled step depends on: the shape of the source, the numerics of the config."""
    warmup_steps = config.optimizer.warmup_steps or round(config.warmup_share * steps)
    return RunConfig(
        model=dataclasses.replace(source.config, **dataclasses.asdict(config.model)),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup_steps),
        mesh=config.mesh,
        seed=config.seed,
        rng=config.rng,
        steps=steps,
        budget_hours=0.0,
    )


def build_optimizer(config: FinetuneConfig, run: RunConfig) -> optax.GradientTransformation:
    """The optimizer, slower in lower layers or not at all in the encoder if the config says so."""
    optimizer = build.build_optimizer(run.optimizer)
    if config.layer_decay == 1 and not config.freeze:
        return optimizer
    depth = scale_by_depth(run.model.num_layers, config.layer_decay, config.freeze)
    return optax.chain(optimizer, depth)


def initial_state(
    config: FinetuneConfig, source: Portable, task: AnyTask, init_state: Any, mesh: Mesh
) -> TrainState:
    """The trained weights, with random ones for what is new."""
    state = init_state(jax.random.key(config.seed))
    if config.random_weights:
        return state
    found, wanted = parts_of(source.params), parts_of(state.params)
    unused = {part for part in found if part not in wanted}
    if tuple(source.labels) != tuple(task.label_names):
        unused |= {task.head} & set(found)  # it is of other classes
    if config.reinit_layers:
        unused |= {"pooler"} & set(found)
    fresh = [part for part in wanted if part not in found or part in unused]
    if fresh:
        hosts.print_once(f"starts at random: {', '.join(fresh)}")
    if unused:
        hosts.print_once(f"not used of {config.init_from}: {', '.join(sorted(unused))}")
    given = without_parts(source.params, unused)
    given = build.put_params(given, mesh, zero1=config.mesh.zero1)
    params = replace_params(state.params, given)
    if config.reinit_layers:
        params = reinit_layers(params, state.params, config.reinit_layers)
    return dataclasses.replace(state, params=params)


def reinit_layers(params: Params, fresh: Params, num_layers: int) -> Params:
    """`params` with the top `num_layers` layers of `fresh`."""

    @jax.jit
    def mix(given: jax.Array, fresh: jax.Array) -> jax.Array:
        layer = jnp.arange(len(given)).reshape(-1, *[1] * (given.ndim - 1))
        return jnp.where(layer < len(given) - num_layers, given, fresh)

    layers = [tree["bert"]["encoder"]["layers"] for tree in (params, fresh)]
    encoder = {"encoder": {"layers": jax.tree.map(mix, *layers)}}
    return params | {"bert": params["bert"] | encoder}


def report(
    config: FinetuneConfig,
    workdir: epath.Path,
    task: AnyTask,
    data: Mapping[str, Examples],
    score: Mapping[str, Scoring],
    mesh: Mesh,
) -> None:
    """Scores the best checkpoint and writes results, predictions and curves."""
    with Checkpoints(workdir / "best", read_only=True) as best:
        params, step = best.read_params()
    params = build.put_params(params, mesh)
    results: dict[str, Any] = {"step": step}
    for split in ("dev", "test"):
        if split not in data:
            continue
        examples = data[split].examples
        metrics, predictions = score[split](params)
        if hosts.is_primary():
            name = task.submission_name(getattr(config.task, split))
            name = name or f"{split}_predictions{task.predictions_suffix}"
            task.write_predictions(workdir / name, examples, predictions)
        if not data[split].labelled:
            continue
        baseline = task.baseline(data["train"].examples, examples)
        results[split] = {"metrics": metrics, "baseline": baseline}
        hosts.print_once(f"{split} at step {step}: {format_metrics(metrics)}")
        hosts.print_once(f"{split} baseline: {format_metrics(baseline)}")
        if not task.label_names:
            continue
        classes = results[split]["classes"] = task.per_class(predictions, examples)
        for row in classes:
            numbers = "  ".join(f"{name} {row[name]:.3f}" for name in ("precision", "recall", "f1"))
            hosts.print_once(f"{split} {row['label']}: {numbers}  support {row['support']:,}")
        matrix = task.confusion_matrix(predictions, examples)
        if matrix is not None:
            results[split]["confusion"] = matrix.tolist()
            if hosts.is_primary():
                draw_confusion(matrix, task.label_names, workdir / f"{split}_confusion.png")
    if hosts.is_primary():
        (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        draw_curves({workdir.name: read_metrics(workdir)}, workdir / "curves.png")


def format_metrics(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def summarize_seeds(workdir: epath.Path, runs: Iterable[epath.Path]) -> None:
    """Writes and prints median, mean and standard deviation of every metric over the runs."""
    runs = [json.loads((run / "results.json").read_text()) for run in runs]
    summary: dict[str, Any] = {}
    for split in ("dev", "test"):
        if split not in runs[0]:
            continue
        for name in runs[0][split]["metrics"]:
            values = [run[split]["metrics"][name] for run in runs]
            numbers = {
                "median": statistics.median(values),
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values),
            }
            summary.setdefault(split, {})[name] = numbers | {"values": values}
            print(f"{split} {name}, {len(values)} seeds: {format_metrics(numbers)}", flush=True)
    (workdir / "results.json").write_text(json.dumps(summary, indent=2) + "\n")


def fingerprint(features: Any) -> str:
    """sha256 of the tokens and labels of examples."""
    digest = hashlib.sha256()
    labels = features.labels if isinstance(features.labels, list) else [features.labels]
    for array in (*features.input_ids, features.b_start, *labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

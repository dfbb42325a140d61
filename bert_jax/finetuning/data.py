"""The examples of a fine-tuning run, and its batches."""

import hashlib
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.data.batches import prefetch
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.evaluation.task_scores import Examples
from bert_jax.interop.portable import Portable
from bert_jax.parallel import hosts, rules
from bert_jax.parallel.mesh import row_devices
from bert_jax.tasks.batches import ExampleBatches
from bert_jax.tasks.features import Features, check_token_types
from bert_jax.tasks.protocol import AnyTask
from bert_jax.train.step import Batch


def read_data(config: FinetuneConfig, source: Portable) -> tuple[AnyTask, dict[str, Examples]]:
    """The task with its labels, and the examples of each split.

    Raises:
      UserError: files cannot be read, or do not fit the task, the model or the config.
    """
    task = config.task
    positions = source.architecture.max_position_embeddings
    if task.max_seq_length > positions:
        raise UserError(
            f"config.task.max_seq_length={task.max_seq_length}, but {config.init_from} has "
            f"{positions} positions"
        )
    task.check_model("config.task", source.architecture)
    given = task.read(task.train)
    task = task.with_labels_of(given)
    splits = {"train": config.chosen(given)}
    splits["dev"] = config.held_out(given) if config.fold else task.read(task.dev)
    if not splits["dev"]:
        raise UserError(f"config.fold={config.fold}: {task.train} has only {len(given)} examples")
    if task.test:
        splits["test"] = task.read(task.test, labelled=task.test_labelled)
    data = {}
    for split, examples in splits.items():
        labelled = split != "test" or task.test_labelled
        features = task.features(examples, source.tokenizer, task.max_seq_length)
        check_token_types(features, source.architecture.type_vocab_size, source.tokenizer)
        data[split] = Examples(examples, features, labelled)
    if (count := len(data["train"].features.units)) < config.batch_size:
        few = f"config.max_examples={config.max_examples} of {task.train}"
        raise UserError(
            f"config.batch_size={config.batch_size}, but "
            f"{few if config.max_examples else task.train} has only {count} examples"
        )
    return task, data


def fingerprint(features: Features) -> str:
    """sha256 of the tokens and labels of examples."""
    digest = hashlib.sha256()
    labels = features.labels if isinstance(features.labels, list) else [features.labels]
    for array in (*features.input_ids, features.b_start, *labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def training_batches(
    config: FinetuneConfig, tokenizer: Tokenizer, task: AnyTask, features: Features, mesh: Mesh
) -> ExampleBatches:
    """This host's rows of every training batch."""
    sharding = rules.batch_sharding(mesh)
    return ExampleBatches(
        features,
        task.head,
        pad_id=tokenizer.pad_id,
        batch_size=config.batch_size,
        seed=config.seed,
        packing=config.packing,
        row_multiple=row_devices(mesh) * config.optimizer.gradient_accumulation,
        host_rows=lambda num_rows: hosts.local_rows(sharding, num_rows),
    )


def device_batches(
    batches: ExampleBatches, first_step: int, steps: int, mesh: Mesh
) -> Iterator[Batch]:
    """The batches of the remaining steps, on the mesh."""
    return (rules.put_batch(batch, mesh) for batch in prefetch(batches, first_step, steps))

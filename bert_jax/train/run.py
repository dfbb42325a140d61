"""Fields of a run as a whole."""

from dataclasses import dataclass

from bert_jax.errors import UserError
from bert_jax.fields import FRACTION, NOT_NEGATIVE, POSITIVE, field


@dataclass(frozen=True)
class Run:
    """What every training run has."""

    init_from: str = field(
        "", "weights to start from: anything that `bert_jax.load` reads; empty starts at random"
    )
    seed: int = field(
        0, "of parameters, the order of examples, masks and dropout", bounds=NOT_NEGATIVE
    )
    rng: str = field(
        "threefry",
        'generator of dropout: "threefry" is the same on every mesh, "rbg" is cheap on TPUs',
        choices=("threefry", "rbg"),
    )
    log_every: int = field(100, "steps between lines of metrics", bounds=POSITIVE, resume=True)

    def check(self, path: str) -> None:
        """Raises UserError if JAX would silently take the lower 32 bits of the seed."""
        if self.seed >= 2**32:
            raise UserError(f"{path}.seed={self.seed} must be below 2**32")


@dataclass(frozen=True)
class PretrainingRun(Run):
    """What a pretraining run has beside its groups of fields."""

    init_missing_heads: bool = field(False, "let heads that init_from lacks start at random")
    steps: int = field(
        1_000_000,
        "optimizer steps of the whole run; with a budget, the most",
        bounds=POSITIVE,
        resume=True,
    )
    budget_hours: float = field(
        0.0,
        "hours after which the schedule and the run end; 0 has no limit",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    target_mlm_accuracy: float = field(
        0.0,
        "held-out masked LM accuracy at which the run ends; 0 has none",
        bounds=FRACTION,
        resume=True,
    )
    target_rows: int = field(
        0,
        "rows in which a reference reaches the target, to compare with; 0 has none",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    eval_every: int = field(
        10_000,
        "steps between evaluations on held-out documents; 0 evaluates at the end only",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    eval_batches: int = field(
        0,
        "batches of an evaluation; 0 takes every held-out document",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    checkpoint_every: int = field(
        5_000,
        "steps between checkpoints; the last step is always saved",
        bounds=POSITIVE,
        resume=True,
    )
    keep_checkpoints: int = field(
        3, "how many of the newest checkpoints to keep", bounds=POSITIVE, resume=True
    )


@dataclass(frozen=True)
class FinetuningRun(Run):
    """What a fine-tuning run has beside its groups of fields."""

    random_weights: bool = field(
        False, "take shape and vocabulary of init_from, but not its weights"
    )
    freeze: bool = field(False, "train only what lies on top of the encoder: pooler and head")
    layer_decay: float = field(
        1.0,
        "the learning rate of a layer is that of the one above times this; the head has "
        "optimizer.learning_rate",
        bounds="(0, 1]",
    )
    reinit_layers: int = field(
        0,
        "top layers that start at random, and the pooler with them (Zhang et al. 2021, "
        "https://arxiv.org/abs/2006.05987)",
        bounds=NOT_NEGATIVE,
    )
    seeds: int = field(
        1, "runs, each with the next seed and a directory of its own", bounds=POSITIVE
    )
    batch_size: int = field(32, "examples of a step", bounds=POSITIVE)
    packing: bool = field(
        True, "several short examples in a row, which computes the same in less time"
    )
    epochs: float = field(3.0, "times that each example is seen", bounds=POSITIVE)
    warmup_share: float = field(
        0.1, "share of the steps that is warmup, where optimizer.warmup_steps is 0", bounds=FRACTION
    )
    evals_per_epoch: int = field(1, "evaluations, with a checkpoint each", bounds=POSITIVE)

"""Fields of a run as a whole."""

from dataclasses import dataclass
from typing import NamedTuple

from bert_jax.data.suites import suite_name
from bert_jax.errors import UserError
from bert_jax.fields import FRACTION, NOT_NEGATIVE, POSITIVE, field
from bert_jax.train.weights import MEANING, TRAINED, parse_weights


@dataclass(frozen=True)
class Run:
    """Fields of every training run."""

    init_from: str = field(
        "", "weights to start from: anything that `bert_jax.load` reads; empty starts at random"
    )
    init_weights: str = field(TRAINED, f"which weights of init_from, if it is a workdir. {MEANING}")
    init_layers: tuple[int, ...] = field(
        (),
        "layers of init_from to start from, in this order, counted from 1: (2, 4, 6) for every "
        "second one of 6; () for all",
    )
    seed: int = field(
        0, "seed of parameters, the order of examples, masks and dropout", bounds=NOT_NEGATIVE
    )
    rng: str = field(
        "threefry",
        'generator for dropout: "threefry" is the same on every mesh, "rbg" is cheap on TPUs',
        choices=("threefry", "rbg"),
    )
    resume_from: int = field(
        -1,
        "checkpoint to go back to: later ones and their metrics are removed, 0 begins anew; "
        "the same command again goes on from the newest, as without it, at -1",
        bounds="[-1, inf)",
        resume=True,
    )
    log_every: int = field(100, "steps between lines of metrics", bounds=POSITIVE, resume=True)
    trackers: tuple[str, ...] = field(
        (),
        "services that get the metrics, too: wandb, mlflow, or MODULE:CLASS of your own",
        resume=True,
    )

    def check(self, path: str) -> None:
        """Raises UserError if a field has no meaning, or JAX would take only part of the seed."""
        parse_weights(self.init_weights, f"{path}.init_weights")
        if self.seed >= 2**32:
            raise UserError(f"{path}.seed={self.seed} must be below 2**32")


@dataclass(frozen=True)
class PretrainingRun(Run):
    """Fields of a pretraining run, besides its groups."""

    branch_from: str = field(
        "",
        "RUN@STEP: begin with the state of the run in workdir RUN after STEP steps; RUN alone "
        "takes its newest checkpoint; steps and schedule are those of the branch",
    )
    init_tiled: bool = field(
        False,
        "init_from is a smaller model: repeat its weights to the width and the layers of this one",
    )
    init_missing_heads: bool = field(False, "start heads that init_from lacks at random")
    steps: int = field(
        1_000_000,
        "total optimizer steps; with budget_hours, the maximum",
        bounds=POSITIVE,
        resume=True,
    )
    budget_hours: float = field(
        0.0,
        "hours after which the schedule and the run end; 0 for no limit",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    target_mlm_accuracy: float = field(
        0.0,
        "held-out masked LM accuracy at which to stop; 0 for none",
        bounds=FRACTION,
        resume=True,
    )
    target_rows: int = field(
        0,
        "rows in which a reference run reaches the target, for comparison; 0 for none",
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
        "batches per evaluation; 0 for all held-out documents",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    eval_suites: tuple[str, ...] = field(
        (),
        "suites to score during the run (docs/evaluation.md): blimp:FOLDER, "
        "zorro:FOLDER, pairs:FILE, cola:FILE",
        resume=True,
    )
    eval_suites_every: int = field(
        0,
        "steps between scores of eval_suites; 0: at every evaluation",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    eval_suite_pairs: int = field(
        20,
        "pairs of each paradigm of eval_suites to score, always the same; 0 for all",
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

    def check(self, path: str) -> None:
        """Raises UserError if a suite is not named KIND:PATH, or two have one name."""
        super().check(path)
        names = []
        for suite in self.eval_suites:
            try:
                names.append(suite_name(suite).label)
            except UserError as error:
                raise UserError(f"{path}.eval_suites: {error}") from error
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{path}.eval_suites: two suites are called {twice[0]}: leave one out")


class Origin(NamedTuple):
    """Where a branch begins.

    Attributes:
      workdir: directory of the run; "" if the run is no branch.
      step: steps of that run; None for its newest checkpoint.
    """

    workdir: str
    step: int | None

    def __str__(self) -> str:
        return self.workdir if self.step is None else f"{self.workdir}@{self.step}"


def parse_origin(branch_from: str) -> Origin:
    """What `branch_from` names."""
    workdir, _, step = branch_from.rpartition("@")
    if workdir and step.isdecimal():
        return Origin(workdir, int(step))
    return Origin(branch_from, None)


@dataclass(frozen=True)
class FinetuningRun(Run):
    """Fields of a fine-tuning run, besides its groups."""

    random_weights: bool = field(
        False, "take shape and vocabulary of init_from, but not its weights"
    )
    teacher: str = field(
        "",
        "model fine-tuned on the same task, whose outputs are learned beside the labels: anything "
        "that `bert_jax.load` reads; it stays as it is; empty for none",
    )
    teacher_weight: float = field(
        0.5, "share of the teacher's outputs in the loss; the labels have the rest", bounds="(0, 1]"
    )
    temperature: float = field(
        2.0, "what the logits of both are divided by to compare them", bounds=POSITIVE
    )
    freeze: bool = field(False, "train only the pooler and the head, not the encoder")
    lora_rank: int = field(
        0,
        "rank of the change of each matrix (LoRA, https://arxiv.org/abs/2106.09685), which is "
        "trained with the pooler and the head; the encoder stays as it is; 0 trains all weights",
        bounds=NOT_NEGATIVE,
    )
    lora_alpha: float = field(
        16.0, "factor of these changes, divided by lora_rank", bounds=POSITIVE
    )
    lora_matrices: tuple[str, ...] = field(
        ("attention/query", "attention/value"),
        "matrices of every layer that get such a change; () for all",
    )
    layer_decay: float = field(
        1.0,
        "factor between the learning rate of a layer and that of the one above; the head has "
        "optimizer.learning_rate",
        bounds="(0, 1]",
    )
    reinit_layers: int = field(
        0,
        "top layers to start at random, together with the pooler (Zhang et al. 2021, "
        "https://arxiv.org/abs/2006.05987)",
        bounds=NOT_NEGATIVE,
    )
    seeds: int = field(
        1, "number of runs, each with the next seed and its own directory", bounds=POSITIVE
    )
    batch_size: int = field(32, "examples per step", bounds=POSITIVE)
    packing: bool = field(
        True, "put several short examples in a row: the same results in less time"
    )
    epochs: float = field(3.0, "passes over the training examples", bounds=POSITIVE)
    warmup_share: float = field(
        0.1, "share of steps that are warmup, if optimizer.warmup_steps is 0", bounds=FRACTION
    )
    evals_per_epoch: int = field(
        1, "evaluations per epoch, each with a checkpoint", bounds=POSITIVE
    )
    patience: int = field(
        0,
        "evaluations in a row without a better score after which a run ends; 0: it does all epochs",
        bounds=NOT_NEGATIVE,
        resume=True,
    )
    max_examples: int = field(
        0,
        "training examples to use, drawn the same for every seed: a larger number has those of a "
        "smaller one, too; 0 for all",
        bounds=NOT_NEGATIVE,
    )
    fold: str = field(
        "",
        "K/N: the K-th of N parts of the training examples is the dev set, and the others are "
        "trained on, the same for every seed; empty for `task.dev`",
    )

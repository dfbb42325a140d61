"""What describes a run, and what of it a resume may change."""

from etils import epath

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.saved import read_finetune_config, read_model_config
from bert_jax.fields import Plain, resumable, to_plain
from bert_jax.model.architecture import Architecture, Numerics


def describe(
    config: FinetuneConfig, architecture: Architecture, numerics: Numerics, labels: tuple[str, ...]
) -> Plain:
    """The content of a run's `config.json`, from which `read_model_config` reads the model."""
    return {
        "finetune": config.to_dict(),
        "model": to_plain(architecture),
        "numerics": to_plain(numerics),
        "labels": list(labels),
    }


def saved_description(workdir: epath.Path) -> Plain:
    """The `config.json` of a run of any version, in the form of `describe`."""
    path = workdir / "config.json"
    return describe(read_finetune_config(path), *read_model_config(path))


def free_to_change(config: FinetuneConfig) -> list[str]:
    """Prefixes "field:" of what a resumed run may change: how it computes and reports.

    What it learns may not change; nor, since runs are short, may the fields of the optimizer,
    unless the run goes back.
    """
    free = [*resumable(config, "finetune."), *resumable(config.numerics, "numerics.")]
    if config.teacher:
        free.append("finetune.teacher:")  # it is known by its weights
    if config.resume_from >= 0:
        return [*free, "finetune.warmup_share:"]
    return [field for field in free if not field.startswith("finetune.optimizer.")]

"""BERT pretraining with the published sizes and Google's recipe.

    bert-jax pretrain --config=bert:base --workdir=runs/base \\
        --config.data.store=stores/wikipedia

The argument picks the size: tiny, mini, small, medium, base (default) or large. This recipe changes
some of the defaults in docs/config.md; every other pretraining recipe starts from this one.

Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805; small sizes: Turc et al. 2019,
https://arxiv.org/abs/1908.08962. Google trained base and large for 1 M steps of 256 sequences:
900 k steps of 128 tokens and 100 k of 512.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.recipes import defaults

SIZES = {  # layers, hidden, heads, FFN
    "tiny": (2, 128, 2, 512),
    "mini": (4, 256, 4, 1024),
    "small": (4, 512, 8, 2048),
    "medium": (8, 512, 8, 2048),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}


def get_config(size: str = "base") -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: use one of {', '.join(SIZES)}")
    config = defaults(PretrainConfig)
    model = config.model
    model.num_layers, model.hidden_size, model.num_heads, model.intermediate_size = SIZES[size]
    model.hidden_act = "gelu_tanh"
    config.optimizer.warmup_steps = config.get_oneway_ref("steps") // 100
    derive_from_length(config)
    return config


def derive_from_length(fields: ConfigDict) -> None:
    """Derives the examples and predictions of a row from its length, unless they are set later."""
    length = fields.data.get_oneway_ref("max_seq_length")
    fields.data.max_examples_per_row = length // 33 + 1
    fields.masking.max_predictions_per_seq = length * 20 // 128  # 20 at 128 tokens and 80 at 512


def set_phases(config: ConfigDict, *phases: Mapping[str, Any]) -> None:
    """Trains consecutive phases, each from the parameters and moments of the one before.

    Args:
      config: config to change.
      phases: the steps of each phase and the fields that it changes, in groups as in `config`;
        examples and predictions of a row, and the warmup, are derived unless they are set later.
    """
    config.phases = tuple(map(ConfigDict, phases))
    for phase in config.phases:
        phase.masking = ConfigDict(phase.get("masking"))
        derive_from_length(phase)
        phase.optimizer.warmup_steps = phase.get_oneway_ref("steps") // 100
    config.steps = sum(phase.get_oneway_ref("steps") for phase in config.phases)

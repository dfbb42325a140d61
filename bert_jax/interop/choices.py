"""The options of `bert-jax convert`, whose flags the messages name, and checks of their values.

Imports nothing heavy, so that options are checked before anything is loaded.
"""

import re
from collections.abc import Iterable

from bert_jax.errors import UserError

QUANTIZED = ("int8",)
FORMATS = ("huggingface", "google", "bert_jax")
# Model type of transformers -> class -> its parts besides the encoder.
_ROBERTA = {
    "Model": ("pooler",),
    "ForMaskedLM": ("masked_lm",),
    "ForSequenceClassification": ("pooler", "sequence_classifier"),
    "ForTokenClassification": ("token_classifier",),
    "ForQuestionAnswering": ("answer_span",),
}
_NO_POOLER = _ROBERTA | {"Model": ()}
CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "bert": {
        "BertModel": ("pooler",),
        "BertForPreTraining": ("pooler", "masked_lm", "next_sentence"),
        "BertForMaskedLM": ("masked_lm",),
        "BertForNextSentencePrediction": ("pooler", "next_sentence"),
        "BertForSequenceClassification": ("pooler", "sequence_classifier"),
        "BertForTokenClassification": ("token_classifier",),
        "BertForQuestionAnswering": ("answer_span",),
        "BertForMultipleChoice": ("pooler", "multiple_choice"),
    },
    "roberta": {f"Roberta{name}": parts for name, parts in _ROBERTA.items()},
    "xlm-roberta": {f"XLMRoberta{name}": parts for name, parts in _ROBERTA.items()},
    "distilbert": {f"DistilBert{name}": parts for name, parts in _NO_POOLER.items()},
    "electra": {
        "ElectraForPreTraining": ("replaced_token",),
        **{f"Electra{name}": parts for name, parts in _NO_POOLER.items()},
    },
    "esm": {
        f"Esm{name}": parts for name, parts in _ROBERTA.items() if name != "ForQuestionAnswering"
    },
    "modernbert": {
        "ModernBertModel": (),
        "ModernBertForMaskedLM": ("masked_lm",),
        "ModernBertForSequenceClassification": ("pooler", "sequence_classifier"),
        "ModernBertForTokenClassification": ("pooler", "token_classifier"),
        "ModernBertForQuestionAnswering": ("pooler", "answer_span"),
    },
    "eurobert": {
        "EuroBertModel": (),
        "EuroBertForMaskedLM": ("masked_lm",),
        "EuroBertForTokenClassification": ("token_classifier",),
    },
}
ARCHITECTURES = {name: parts for classes in CLASSES.values() for name, parts in classes.items()}
# Parts that can start at random.
INITIALISED = (
    "pooler",
    "masked_lm",
    "next_sentence",
    "answer_span",
    "replaced_token",
    "multiple_choice",
)
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # NAME or OWNER/NAME


def no_model(path: str) -> UserError:
    """The error for a path without a model; for what may be a name of the Hub, how to fetch it."""
    fetch = (
        "; to fetch it from the Hugging Face Hub: pip install huggingface_hub, then "
        f"hf download {path} --include '*.json' --include '*.txt' --include '*.safetensors' "
        f"--local-dir {path}"
    )
    return UserError(
        f"{path}: no model there, neither config.json (of bert_jax or Hugging Face) nor "
        f"bert_config.json (of Google){fetch if HUB_NAME.fullmatch(path) else ''}"
    )


def check_format(name: str) -> None:
    """Raises UserError if models cannot be written in this format."""
    if name not in FORMATS:
        raise UserError(f"--to={name}: use one of {', '.join(FORMATS)}")


def check_quantize(name: str | None, to: str) -> None:
    """Raises UserError unless weights can be rounded to `name`, or None, in the format `to`."""
    if name is not None and name not in QUANTIZED:
        raise UserError(f"--quantize={name}: use {' or '.join(QUANTIZED)}")
    if name is not None and to != "bert_jax":
        raise UserError(f"--quantize={name} needs --to=bert_jax; other formats have fp32 weights")


def check_architecture(name: str | None) -> None:
    """Raises UserError unless `name` is a class of `ARCHITECTURES`, or None for any class."""
    if name is not None and name not in ARCHITECTURES:
        raise UserError(f"--architecture={name}: use one of {', '.join(ARCHITECTURES)}")


def check_initialise(parts: Iterable[str]) -> None:
    """Raises UserError if a part cannot start at random."""
    for part in parts:
        if part not in INITIALISED:
            raise UserError(f"--initialise={part}: use one of {', '.join(INITIALISED)}")


def check_seed(seed: int) -> None:
    """Raises UserError unless `seed` is an unsigned 32-bit integer."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed={seed} must be from 0 to 2**32 - 1")

"""config.json of Hugging Face and bert_config.json of Google, whose fields are the same."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from bert_jax.config import ModelConfig, build_model_config
from bert_jax.data.wordpiece import WordPiece
from bert_jax.errors import UserError

FIELDS = {  # ours -> theirs
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_act": "hidden_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
ACTIVATIONS = {  # theirs -> ours; of two names the last is written, which every version knows
    "gelu_python": "gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
# What a file that does not say means; older ones leave out what had one value only.
DEFAULTS = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}
# Fields that change what the weights mean, with the one value that is BERT's.
REQUIRED = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
# What they do not have: how to compute.
NUMERICS = {
    "position_embedding": "learned",
    "compute_dtype": "float32",
    "attention": "auto",
    "scan_layers": True,
    "remat": "dots",
}


def write_json(path: epath.Path, fields: Mapping[str, Any]) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_config(path: epath.Path, fields: Mapping[str, Any]) -> ModelConfig:
    """The config of a model of theirs, computed in fp32.

    Args:
      path: of the file, for messages.
      fields: in it; those that say nothing about an encoder without dropout of its own are ignored.

    Raises:
      UserError: not BERT, or a field is missing or out of range.
    """
    for name, due in REQUIRED.items():
        if fields.get(name, due) != due:
            raise UserError(f"{path}: {name} is {fields[name]!r}; only {due!r} can be read")
    fields = DEFAULTS | dict(fields)
    if fields["hidden_act"] not in tuple(ACTIVATIONS):
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{path}: hidden_act is {fields['hidden_act']!r}; there are {known}")
    for name in FIELDS.values():
        if name not in fields:
            raise UserError(f"{path}: {name} is missing")
    ours = {name: fields[theirs] for name, theirs in FIELDS.items()}
    ours["hidden_act"] = ACTIVATIONS[ours["hidden_act"]]
    try:
        return build_model_config(ours | NUMERICS)
    except UserError as error:
        message = str(error)
        for name, theirs in FIELDS.items():
            message = message.replace(f"config.model.{name}", theirs)
        raise UserError(f"{path}: {message}") from error


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of theirs that say the same."""
    written = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    fields = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    return fields | {"hidden_act": written[config.hidden_act]}


def default_labels(classes: int) -> tuple[str, ...]:
    """What transformers calls the outputs of a classifier that have no names."""
    return tuple(f"LABEL_{id_}" for id_ in range(classes))


def check_vocabulary(path: epath.Path, config: ModelConfig, wordpiece: WordPiece) -> None:
    """Raises UserError if the vocabulary beside the config at `path` is of another size."""
    if config.vocab_size != len(wordpiece.vocab):
        raise UserError(
            f"{path}: vocab_size is {config.vocab_size}, "
            f"but the vocabulary beside it has {len(wordpiece.vocab)} tokens"
        )

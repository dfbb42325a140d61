"""Hugging Face's config.json and Google's bert_config.json, which have the same fields."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from etils import epath

from bert_jax.config.saved import model_config
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import Plain, fields_of
from bert_jax.model.architecture import Architecture, Numerics

FIELDS = {  # ours -> theirs
    "model.vocab_size": "vocab_size",
    "model.num_layers": "num_hidden_layers",
    "model.hidden_size": "hidden_size",
    "model.num_heads": "num_attention_heads",
    "model.intermediate_size": "intermediate_size",
    "model.max_position_embeddings": "max_position_embeddings",
    "model.type_vocab_size": "type_vocab_size",
    "model.hidden_act": "hidden_act",
    "numerics.hidden_dropout": "hidden_dropout_prob",
    "numerics.attention_dropout": "attention_probs_dropout_prob",
    "model.layer_norm_eps": "layer_norm_eps",
    "model.initializer_range": "initializer_range",
}
ACTIVATIONS = {  # theirs -> ours; of two names, the last is written: every version knows it
    "gelu_python": "gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
}
# Values of fields that a file lacks; older files omit fields that had only one value then.
DEFAULTS = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}
# Fields that change what the weights mean, with their value in BERT.
REQUIRED = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
# Fields that change nothing in a model whose layers are all global, or only its initial weights.
NO_BLOCKS = ("local_window", "scaled_output_init")


def read_fields(path: epath.Path, fields: Mapping[str, Any]) -> tuple[Architecture, Numerics]:
    """The model that such a file describes, computed in fp32.

    Args:
      path: path of the file, for messages.
      fields: contents of the file; unrelated fields are ignored.

    Raises:
      UserError: the model is not BERT, or a field is missing or out of range.
    """
    for name, value in REQUIRED.items():
        if fields.get(name, value) != value:
            raise UserError(f"{path}: {name} is {fields[name]!r}; only {value!r} can be read")
    fields = DEFAULTS | dict(fields)
    if fields["hidden_act"] not in tuple(ACTIVATIONS):  # it may be a list, which has no hash
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{path}: hidden_act is {fields['hidden_act']!r}; only {known} can be read")
    for name in FIELDS.values():
        if name not in fields:
            raise UserError(f"{path}: {name} is missing")
    given: dict[str, Plain] = {"model": {}, "numerics": {"compute_dtype": "float32"}}
    for ours, theirs in FIELDS.items():
        group, name = ours.split(".")
        given[group][name] = fields[theirs]
    given["model"]["hidden_act"] = ACTIVATIONS[fields["hidden_act"]]
    try:
        return model_config(given)
    except UserError as error:
        message = str(error)
        for ours, theirs in FIELDS.items():
            message = message.replace(f"config.{ours}", theirs)
        raise UserError(f"{path}: {message}") from error


def write_fields(architecture: Architecture, numerics: Numerics) -> Plain:
    """A model as the fields of such a file, which do not describe the position encoding.

    Raises:
      UserError: its blocks are not BERT's.
    """
    for name, declared in fields_of(Architecture).items():
        value = getattr(architecture, name)
        known = f"model.{name}" in FIELDS or name in ("position_embedding", *NO_BLOCKS)
        if not known and value != declared.default:
            raise UserError(f"model.{name} is {value!r}; this format has BERT's blocks only")
    groups = {"model": architecture, "numerics": numerics}
    fields = {}
    for ours, theirs in FIELDS.items():
        group, name = ours.split(".")
        fields[theirs] = getattr(groups[group], name)
    written = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return fields | {"hidden_act": written[architecture.hidden_act]}


def default_labels(classes: int) -> tuple[str, ...]:
    """The names that transformers gives to unnamed classes."""
    return tuple(f"LABEL_{id_}" for id_ in range(classes))


def check_vocabulary(path: epath.Path, architecture: Architecture, tokenizer: Tokenizer) -> None:
    """Raises UserError if the vocabulary has another size than the config at `path` says."""
    if architecture.vocab_size != len(tokenizer.vocab):
        raise UserError(
            f"{path}: vocab_size is {architecture.vocab_size}, "
            f"but the vocabulary beside it has {len(tokenizer.vocab)} tokens"
        )


def without_spare_rows(
    path: epath.Path, architecture: Architecture, tokenizer: Tokenizer
) -> tuple[Architecture, int]:
    """The architecture with the size of the vocabulary, and the rows that its tables have.

    Others round the number of rows up, for speed. Rows beyond the vocabulary stand for no token.

    Args:
      path: path of the config, for messages.
      architecture: architecture that it describes.
      tokenizer: vocabulary beside it.

    Raises:
      UserError: there are fewer rows than tokens.
    """
    rows, tokens = architecture.vocab_size, len(tokenizer.vocab)
    if rows > tokens:
        architecture = replace(architecture, vocab_size=tokens)
    check_vocabulary(path, architecture, tokenizer)
    return architecture, rows


def check_labels(path: epath.Path, labels: Sequence[str], outputs: int) -> None:
    """Raises UserError if a classifier with `outputs` outputs has another number of classes."""
    if labels and len(labels) != outputs:
        raise UserError(
            f"{path}: labels has {len(labels)} classes, but the model has {outputs} outputs"
        )

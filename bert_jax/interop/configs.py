"""The config.json of Hugging Face, and Google's bert_config.json, which has the fields of BERT."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from etils import epath

from bert_jax.config.saved import model_config
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import Choice, Plain, build, fields_of
from bert_jax.interop.lineages import BERT, LINEAGES, Lineage
from bert_jax.model.architecture import Architecture, Numerics

ACTIVATIONS = {  # theirs -> ours; of two names, the last is written: every version knows it
    "gelu_python": "gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
}


def lineage_in(path: epath.Path, fields: Mapping[str, Any]) -> Lineage:
    """The lineage of a file's `model_type`; older files of BERT have none.

    Raises:
      UserError: the model type is another one.
    """
    name = fields.get("model_type", BERT.model_type)
    if not isinstance(name, str) or name not in LINEAGES:
        known = ", ".join(LINEAGES)
        raise UserError(f"{path}: model_type is {name!r}; only {known} can be read")
    return LINEAGES[name]


def read_fields(
    path: epath.Path, fields: Mapping[str, Any], lineage: Lineage
) -> tuple[Architecture, Numerics]:
    """The model that such a file describes, computed in fp32.

    Args:
      path: path of the file, for messages.
      fields: contents of the file; unrelated fields are ignored.
      lineage: kind of model.

    Raises:
      UserError: the model has other blocks, or a field is missing or out of range.
    """
    for name, value in lineage.required.items():
        if fields.get(name, value) != value:
            raise UserError(f"{path}: {name} is {fields[name]!r}; only {value!r} can be read")
    fields = {**lineage.defaults, **fields}
    for name in lineage.fields.values():
        if name not in fields:
            raise UserError(f"{path}: {name} is missing")
    given: dict[str, Plain] = {
        "model": {**lineage.blocks, **lineage.read(fields, str(path))},
        "numerics": {"compute_dtype": "float32"},
    }
    for ours, theirs in lineage.fields.items():
        group, name = ours.split(".")
        value = fields[theirs]
        if name == "hidden_act":
            if value not in tuple(ACTIVATIONS):  # it may be a list, which has no hash
                known = ", ".join(ACTIVATIONS)
                raise UserError(f"{path}: {theirs} is {value!r}; only {known} can be read")
            value = ACTIVATIONS[value]
        given[group].setdefault(name, value)
    if "hidden_dropout" not in given["numerics"]:  # one rate for both places in attention
        given["numerics"]["hidden_dropout"] = given["numerics"]["attention_dropout"]
    try:
        return model_config(given)
    except UserError as error:
        message = str(error)
        for ours, theirs in lineage.fields.items():
            message = message.replace(f"config.{ours}", theirs)
        raise UserError(f"{path}: {message}") from error


def write_fields(architecture: Architecture, numerics: Numerics, lineage: Lineage) -> Plain:
    """A model as the fields of such a file.

    Raises:
      UserError: the lineage has no place for a block of the model.
    """
    if differing := _differences(architecture, lineage):
        name = differing[0]
        raise UserError(
            f"model.{name} is {_shown(architecture, name)}; this format has the blocks of "
            f"{lineage.model_type} only"
        )
    fields = {}
    for ours, theirs in lineage.fields.items():
        group, name = ours.split(".")
        value = numerics.rate(name) if group == "numerics" else getattr(architecture, name)
        if name == "hidden_act":
            value = {ours: theirs for theirs, ours in ACTIVATIONS.items()}[architecture.hidden_act]
        fields[theirs] = value
    return {**fields, **lineage.write(architecture)}


def lineage_of(architecture: Architecture, parts: Sequence[str] = ("pooler",)) -> Lineage:
    """The lineage whose classes in transformers compute a model.

    Args:
      architecture: architecture of the model.
      parts: its parts; without a pooler, the lineage may have another one.

    Raises:
      UserError: there is none; the message names a block that the nearest one lacks.
    """
    unused = () if "pooler" in parts else ("pooler",)
    differing = {
        name: _differences(architecture, lineage)
        for name, lineage in LINEAGES.items()
        if name == "electra" or "replaced_token" not in parts  # which no other has
    }
    lost = {name: [x for x in fields if x not in unused] for name, fields in differing.items()}
    nearest = min(lost, key=lambda name: (len(lost[name]), len(differing[name])))
    if lost[nearest]:
        name = lost[nearest][0]
        raise UserError(
            f"model.{name} is {_shown(architecture, name)}; no class of transformers has these "
            f"blocks ({nearest} is nearest)"
        )
    return LINEAGES[nearest]


def _differences(architecture: Architecture, lineage: Lineage) -> list[str]:
    """The fields of a model that are lost when it is written as this lineage and read again."""
    theirs = {
        **{
            field: getattr(architecture, ours.removeprefix("model."))
            for ours, field in lineage.fields.items()
            if ours.startswith("model.")
        },
        **lineage.write(architecture),
    }
    ours = {**lineage.blocks, **lineage.read(theirs, "")}
    for name, field in lineage.fields.items():
        if name.startswith("model."):
            ours.setdefault(name.removeprefix("model."), theirs[field])
            if field in lineage.required:
                ours[name.removeprefix("model.")] = lineage.required[field]
    found = build(Architecture, ours)
    return [
        name
        for name in fields_of(Architecture)
        if getattr(found, name) != getattr(architecture, name)
        and not (name == "local_window" and architecture.global_every == 1)
        and name != "scaled_output_init"  # sets only the initial weights
    ]


def _shown(architecture: Architecture, name: str) -> str:
    value = getattr(architecture, name)
    return value.called() if isinstance(value, Choice) else repr(value)


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

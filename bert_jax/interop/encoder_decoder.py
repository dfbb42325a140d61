"""Reads and writes directories of transformers' `EncoderDecoderModel`, both halves of one kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.fields import fields_of
from bert_jax.interop.configs import lineage_in, lineage_of, read_fields, without_spare_rows
from bert_jax.interop.huggingface import (
    CONFIG_FILE,
    fields_of_class,
    open_weights,
    save_weights,
    usual_names,
    without_copies,
)
from bert_jax.interop.lineages import LINEAGES, Lineage
from bert_jax.interop.portable import Portable
from bert_jax.interop.positions import with_learned_positions
from bert_jax.interop.tensors import (
    Report,
    Stored,
    huggingface_naming,
    read_params,
    write_tensors,
)
from bert_jax.interop.tokenizer import read_tokenizer, write_tokenizer
from bert_jax.json_values import typed
from bert_jax.model.architecture import Architecture, Numerics
from bert_jax.model.heads import CROSS_ATTENTION, DECODER, MASKED_LM
from bert_jax.model.parameters import Params
from bert_jax.storage import read_json, write_json

MODEL_TYPE = "encoder-decoder"
DECODER_PARTS = (MASKED_LM.part, CROSS_ATTENTION)  # of the class of its decoder
GENERATION_FILE = "generation_config.json"
SEARCH = {  # our fields of a search -> theirs
    "beams": "num_beams",
    "max_length": "max_new_tokens",
    "min_length": "min_new_tokens",
    "length_penalty": "length_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
}
ROLES = {"is_decoder": True, "add_cross_attention": True}


@dataclass(frozen=True)
class Halves:
    """The fields of such a config.json."""

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    tie_encoder_decoder: bool = False


def is_encoder_decoder(fields: Mapping[str, Any]) -> bool:
    """Whether these are the fields of an EncoderDecoderModel."""
    return fields.get("model_type") == MODEL_TYPE


def read_halves(path: epath.Path) -> tuple[Lineage, Architecture, Numerics]:
    """What a config.json says of both halves.

    Raises:
      UserError: they are of different kinds or shapes, or of a kind that cannot be read.
    """
    halves = typed(read_json(path), Halves, str(path))
    lineage = lineage_in(path, halves.encoder)
    if halves.decoder.get("model_type") != lineage.model_type or not lineage.decoder:
        known = ", ".join(name for name, each in LINEAGES.items() if each.decoder)
        raise UserError(
            f"{path}: encoder and decoder are {lineage.model_type} and "
            f"{halves.decoder.get('model_type')}; only two of one kind can be read, of {known}"
        )
    if any(halves.decoder.get(name) is not role for name, role in ROLES.items()):
        raise UserError(f"{path}: decoder: {' and '.join(ROLES)} must be true")
    architecture, numerics = read_fields(path, halves.encoder, lineage)
    without_role = halves.decoder | dict.fromkeys(ROLES, False)
    other, _ = read_fields(path, without_role, lineage)
    for name in fields_of(Architecture):
        here, there = (getattr(each, name) for each in (architecture, other))
        if here != there and name != "initializer_range":
            raise UserError(
                f"{path}: the encoder has {name}={here}, the decoder {there}; only equal ones can "
                "be read"
            )
    return lineage, architecture, numerics


def read_encoder_decoder(
    path: epath.Path, *, lowercase: bool | None, strict: bool, report: Report
) -> Portable:
    """Reads a directory that `EncoderDecoderModel.save_pretrained` wrote.

    The weights are shared if its `tie_encoder_decoder` says so and they are equal.

    Args:
      path, lowercase, strict, report: as for `bert_jax.interop.huggingface.read_huggingface`.

    Raises:
      UserError: another kind of model, or damaged.
    """
    lineage, architecture, numerics = read_halves(path / CONFIG_FILE)
    is_tied = read_json(path / CONFIG_FILE, Halves).tie_encoder_decoder
    tokenizer = read_tokenizer(path, lowercase=lowercase)
    architecture, rows = without_spare_rows(path / CONFIG_FILE, architecture, tokenizer)
    try:
        with open_weights(Path(path)) as stored:
            encoder, decoder = (
                usual_names(_under(f"{half}.", stored), lineage) for half in ("encoder", "decoder")
            )
            if is_tied:  # older versions store each weight once
                pooler = lineage.modules["bert/pooler"]
                own = {n: x for n, x in encoder.items() if not n.startswith(pooler)}
                decoder = own | decoder
            others = [n for n in stored if not n.startswith(("encoder.", "decoder."))]
            if others and strict:
                raise UserError(f"{others[0]} belongs to neither encoder nor decoder")

            def half(stored: Mapping[str, Stored], *parts: str) -> Params:
                return read_params(
                    without_copies(stored, lineage, report),
                    huggingface_naming(lineage, parts),
                    architecture,
                    parts,
                    rows=rows,
                    strict=strict,
                    report=report,
                )

            params, written = half(encoder, "pooler"), half(decoder, *DECODER_PARTS)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for part in DECODER_PARTS:
        if part not in written:
            raise UserError(f"{path}: the decoder has no {part}")
    params[CROSS_ATTENTION] = written.pop(CROSS_ATTENTION)
    if is_tied and _equal(written["bert"], params["bert"]):
        params |= {MASKED_LM.part: written[MASKED_LM.part]}
    else:
        params |= {DECODER: written}
    return Portable(architecture, numerics, tokenizer, params)


def write_encoder_decoder(path: epath.Path, model: Portable, report: Report) -> None:
    """Writes what `EncoderDecoderModel` and `AutoTokenizer` load.

    Args:
      path: empty local directory.
      model: model with `cross_attention`.
      report: called with a line for each thing that changes or that transformers will add.

    Raises:
      UserError: no class of transformers has a decoder of these blocks.
    """
    encoder, decoder = halves_of(model)
    if MASKED_LM.part not in decoder.params:
        raise UserError(f"the model has no {MASKED_LM.part}, which scores the words of its texts")
    encoder = with_learned_positions(encoder, report)
    decoder = with_learned_positions(decoder, lambda line: None)
    lineage = lineage_of(encoder.architecture, (MASKED_LM.part,))
    if not lineage.decoder:
        raise UserError(
            f"transformers has no decoder of the blocks of {lineage.model_type} that can be "
            "written: use `bert-jax convert --to=bert_jax`"
        )
    if "pooler" not in encoder.params["bert"]:
        report("missing: pooler of the encoder, which is not used; transformers adds a random one")
    name = f"{lineage.decoder.partition('LMHead')[0].partition('For')[0]}Model"
    ids = model.tokenizer
    first = {"decoder_start_token_id": ids.cls_id, "pad_token_id": ids.pad_id}
    fields = {
        "architectures": ["EncoderDecoderModel"],
        "model_type": MODEL_TYPE,
        "is_encoder_decoder": True,
        "tie_encoder_decoder": DECODER not in model.params,
        **first,
        "encoder": fields_of_class(name, encoder, lineage),
        "decoder": fields_of_class(lineage.decoder, decoder, lineage) | ROLES,
    }
    write_json(path / CONFIG_FILE, fields)
    ends = {"bos_token_id": ids.cls_id, "eos_token_id": ids.sep_id}
    search = (model.task or {}).get("search", {})
    options = {theirs: search[ours] for ours, theirs in SEARCH.items() if ours in search}
    write_json(path / GENERATION_FILE, first | ends | options)
    tensors = {
        **_tensors("encoder", encoder, lineage, f"{lineage.base}."),
        **_tensors("decoder", decoder, lineage),
    }
    save_weights(path, tensors)
    write_tokenizer(path, ids, model.architecture.max_position_embeddings)


def halves_of(model: Portable) -> tuple[Portable, Portable]:
    """The encoder, and the decoder as a model with `DECODER_PARTS`."""
    written = model.params.get(DECODER, model.params)
    parts = {name: values for name, values in written.items() if name == MASKED_LM.part}
    bert = {name: values for name, values in written["bert"].items() if name != "pooler"}
    parts |= {"bert": bert, CROSS_ATTENTION: model.params[CROSS_ATTENTION]}
    encoder = model._replace(params={"bert": model.params["bert"]})
    return encoder, model._replace(params=parts)


def _tensors(
    half: str, model: Portable, lineage: Lineage, prefix: str = ""
) -> dict[str, np.ndarray]:
    """The tensors of a half by their names, which lose a prefix."""
    naming = huggingface_naming(lineage, ())
    return {
        f"{half}.{name.removeprefix(prefix)}": values
        for name, values in write_tensors(naming, model)
    }


def _under(prefix: str, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): x for n, x in stored.items() if n.startswith(prefix)}


def _equal(written: Params, read: Params) -> bool:
    """Whether two encoders have the same weights, apart from a pooler."""
    others = {name: read[name] for name in written if name in read}
    same = jax.tree.map(np.array_equal, written, others)
    return all(jax.tree.leaves(same))

"""Starts training from existing weights."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from bert_jax.config.overrides import flatten
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.wordpiece import CONFIG_FILE, WordPiece
from bert_jax.errors import UserError
from bert_jax.fields import to_plain
from bert_jax.interop.formats import read
from bert_jax.interop.tokenizer import TOKENIZER_FILE
from bert_jax.model.heads import parts_of
from bert_jax.model.parameters import Params

# Fields of an `Architecture` that may differ: vocabularies are compared by their words, and the
# initializer does not affect given weights.
FREE = ("vocab_size", "initializer_range")


def initial_params(
    config: PretrainConfig, wordpiece: WordPiece, parts: Sequence[str]
) -> tuple[Params, list[str]]:
    """Reads the weights that `config.init_from` names.

    Args:
      config: config of the run.
      wordpiece: vocabulary of its data.
      parts: parts of its model; see `bert_jax.model.heads.PARTS`.

    Returns:
      Nested dict of numpy arrays without the heads that start at random, and a line about each
      tensor or part that is not taken over.

    Raises:
      UserError: the weights cannot be read, have another model or vocabulary than the run, or lack
        a head and `config.init_missing_heads` is not set.
    """
    lines: list[str] = []
    # A checkpoint of Google does not say its casing; the words themselves are compared below.
    path = epath.Path(config.init_from)
    says = (path / CONFIG_FILE).exists() or (path / TOKENIZER_FILE).exists()
    lowercase = None if says else wordpiece.lowercase
    source = read(path, lowercase=lowercase, report=lines.append)
    if source.wordpiece.vocab_hash != wordpiece.vocab_hash:
        raise UserError(
            f"config.init_from={config.init_from}: its vocabulary of {_describe(source.wordpiece)} "
            f"is not that of the data, {_describe(wordpiece)}: "
            f"prepare the data with `bert-jax prepare --vocab={config.init_from}`"
        )
    theirs, ours = flatten(to_plain(source.architecture)), flatten(to_plain(config.model))
    changed = [name for name in theirs if name not in FREE and theirs[name] != ours.get(name)]
    if changed:
        overrides = " ".join(f"--config.model.{name}={theirs[name]}" for name in changed)
        raise UserError(f"config.init_from={config.init_from} is another model: set {overrides}")
    found = parts_of(source.params)
    missing = [part for part in parts if part not in found]
    if missing and not config.init_missing_heads:
        raise UserError(
            f"config.init_from={config.init_from} has no {', '.join(missing)}: "
            f"--config.init_missing_heads=True starts with random ones"
        )
    unused = [part for part in found if part not in parts]
    lines += [f"{part}: not in {config.init_from}, starts at random" for part in missing]
    lines += [f"{part}: in {config.init_from}, not used" for part in unused]
    return without_parts(source.params, unused), lines


def replace_params(params: Mapping[str, Any], given: Mapping[str, Any]) -> Params:
    """The nested dict `params`, its leaves replaced by those in `given`."""
    return {
        name: value
        if name not in given
        else replace_params(value, given[name])
        if isinstance(value, Mapping)
        else given[name]
        for name, value in params.items()
    }


def without_parts(params: Mapping[str, Any], parts: Collection[str]) -> Params:
    """The nested dict `params` without some of `bert_jax.model.heads.PARTS`."""
    bert = {name: value for name, value in params["bert"].items() if name not in parts}
    heads = {name: value for name, value in params.items() if name not in parts}
    return heads | {"bert": bert}


def _describe(wordpiece: WordPiece) -> str:
    return f"{len(wordpiece.vocab):,} {'un' if wordpiece.lowercase else ''}cased words"

"""Starts training from existing weights."""

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from etils import epath

from bert_jax.config.overrides import flatten
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.saved import read_pretrain_config
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.fields import build, to_plain
from bert_jax.interop.formats import casing, read, read_architecture
from bert_jax.interop.portable import Portable
from bert_jax.interop.tensors import Report
from bert_jax.interop.tiling import SIZES, check_tiles, tiled
from bert_jax.model.architecture import Architecture
from bert_jax.model.generator import GENERATOR
from bert_jax.model.heads import parts_of
from bert_jax.model.int8 import in_float32, is_int8
from bert_jax.model.parameters import Params
from bert_jax.model.pruning import kept_layers
from bert_jax.train.checkpoints import DamagedCheckpoint
from bert_jax.train.run import Run, parse_origin

# Fields of an `Architecture` that may differ: vocabularies are compared by their words, and the
# initializer does not affect given weights.
FREE = ("vocab_size", "initializer_range")


def read_initial(run: Run, *, lowercase: bool | None = None, report: Report) -> Portable:
    """Reads the weights that `init_from`, `init_weights` and `init_layers` of a config name.

    Raises:
      UserError: there are none, or they are damaged; it says how to start from another checkpoint.
    """
    path = run.init_from
    try:
        model = read(path, weights=run.init_weights, lowercase=lowercase, report=report)
    except DamagedCheckpoint as error:
        if not error.whole:
            raise
        quoted, step = shlex.quote(os.fspath(path)), error.whole[-1]
        target = shlex.quote(f"{epath.Path(path).name or 'model'}-{step}")
        raise UserError(
            f"{error.fact}: write another with `bert-jax convert {quoted} {target} --to=bert_jax "
            f"--step={step}` and then set config.init_from={target}"
        ) from error
    if is_int8(model.params):
        report("read into float32: the weights in int8, as they were rounded")
    return with_layers(model._replace(params=in_float32(model.params)), run.init_layers)


def with_layers(source: Portable, chosen: Sequence[int]) -> Portable:
    """A model, and its generator if it has one, of some of its layers; of all if none is chosen.

    Args:
      source: model to take them from.
      chosen: numbers of the layers, from 1.

    Raises:
      UserError: it has no such layer.
    """
    if not chosen:
        return source
    architecture = fewer_layers(source.architecture, chosen)
    params = kept_layers(source.params, [layer - 1 for layer in chosen])
    generator = source.generator and with_layers(source.generator, chosen)
    return source._replace(architecture=architecture, params=params, generator=generator)


def fewer_layers(architecture: Architecture, chosen: Sequence[int]) -> Architecture:
    """The architecture of `with_layers`."""
    if not chosen:
        return architecture
    wrong = [layer for layer in chosen if not 1 <= layer <= architecture.num_layers]
    if wrong:
        raise UserError(
            f"config.init_layers={tuple(chosen)}: config.init_from has no layer {wrong[0]}, only 1 "
            f"to {architecture.num_layers}"
        )
    if architecture.layer_mixing:
        raise UserError(
            f"config.init_layers={tuple(chosen)}: the layers of config.init_from mix the results "
            "of all before them, so none can be left out; set it to ()"
        )
    return replace(architecture, num_layers=len(chosen))


def initial_params(
    config: PretrainConfig, tokenizer: Tokenizer, parts: Sequence[str]
) -> tuple[Params, list[str]]:
    """Reads the weights that `config.init_from` names.

    Args:
      config: config of the run.
      tokenizer: vocabulary of its data.
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
    lowercase = casing(path, tokenizer.lowercase)
    source = read_initial(config, lowercase=lowercase, report=lines.append)
    if source.tokenizer.vocab_hash != tokenizer.vocab_hash:
        raise UserError(
            f"config.init_from={config.init_from}: its vocabulary "
            f"({source.tokenizer.description}) is not that of the data ({tokenizer.description}): "
            f"prepare the data with `bert-jax prepare --vocab={config.init_from}`"
        )
    theirs, ours = flatten(to_plain(source.architecture)), flatten(to_plain(config.model))
    free = (*FREE, *(SIZES if config.init_tiled else ()))
    changed = [name for name in theirs if name not in free and theirs[name] != ours.get(name)]
    if changed:
        overrides = " ".join(f"--config.model.{name}={theirs[name]}" for name in changed)
        raise UserError(f"config.init_from={config.init_from} is another model: set {overrides}")
    if config.init_tiled:
        check_tiles(f"config.init_from={config.init_from}", source.architecture, config.model)
    found = parts_of(source.params)
    missing = [part for part in parts if part not in found]
    generator = None
    for architecture in config.objective.encoders(config.model)[1:]:
        if source.generator:
            generator = _generator(config, source.generator, architecture)
        else:
            missing.append(GENERATOR)
    if missing and not config.init_missing_heads:
        raise UserError(
            f"config.init_from={config.init_from} has no {', '.join(missing)}: "
            f"--config.init_missing_heads=True starts with random ones"
        )
    unused = [part for part in found if part not in parts]
    if source.generator and generator is None:
        lines.append(f"{GENERATOR}: in {config.init_from}, not used")
    lines += [f"{part}: not in {config.init_from}, starts at random" for part in missing]
    lines += [f"{part}: in {config.init_from}, not used" for part in unused]
    params = without_parts(source.params, unused)
    if config.init_tiled:
        params = tiled(params, source.architecture, config.model)
    return config.objective.initial(params, generator), lines


def _generator(config: PretrainConfig, source: Portable, architecture: Architecture) -> Params:
    """The parameters of a run's generator, from those of another generator."""
    name = f"the generator of config.init_from={config.init_from}"
    if config.init_tiled:
        check_tiles(name, source.architecture, architecture)
        return tiled(source.params, source.architecture, architecture)
    theirs, ours = (flatten(to_plain(each)) for each in (source.architecture, architecture))
    for field in theirs:
        if field not in FREE and theirs[field] != ours.get(field):
            raise UserError(
                f"{name} has {field}={theirs[field]}, where this run's has {ours.get(field)}: set "
                "config.objective.generator_size as it was there"
            )
    return source.params


def follow_weights(
    config: PretrainConfig, overrides: Collection[str], workdir: epath.Path | None = None
) -> tuple[PretrainConfig, list[str]]:
    """The config with the architecture of the weights that `config.init_from` names.

    Fields of `config.model` that a user sets are left as they are, and so are the sizes of a model
    that is tiled from a smaller one. A run that is in `workdir`
    keeps its architecture, so its first weights may be gone.

    Args:
      config: config as the recipe and the overrides make it; returned unchanged without weights.
      overrides: the arguments `--config.FIELD=VALUE` of the command line.
      workdir: directory of the run.

    Returns:
      The config, and a line that names the fields that changed.

    Raises:
      UserError: there are no weights, or the fields do not fit together.
    """
    if not config.init_from:
        return config, []
    origin = parse_origin(config.branch_from).workdir
    runs = [path for path in (workdir, epath.Path(origin) if origin else None) if path]
    files = [path / "config.json" for path in runs]
    if saved := next((path for path in files if path.exists()), None):
        theirs = to_plain(read_pretrain_config(saved).model)
    else:
        found = read_architecture(config.init_from)
        theirs = to_plain(fewer_layers(found, config.init_layers))
    given = {flag.removeprefix("--config.").partition("=")[0] for flag in overrides}
    fields = config.to_dict()
    changed = {
        name: value
        for name, value in theirs.items()
        if fields["model"][name] != value
        and not (config.init_tiled and name in SIZES)
        and not any(path == f"model.{name}" or path.startswith(f"model.{name}.") for path in given)
    }
    if not changed:
        return config, []
    fields["model"] |= changed
    said = ", ".join(f"{name}={value}" for name, value in flatten(changed).items())
    line = f"config.model follows {config.init_from}: {said}"
    return build(PretrainConfig, fields), [line]


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


def with_parts_only(params: Mapping[str, Any], wanted: Collection[str]) -> Params:
    """The nested dict `params` without all `bert_jax.model.heads.PARTS` but the wanted ones."""
    return without_parts(params, [part for part in parts_of(params) if part not in wanted])

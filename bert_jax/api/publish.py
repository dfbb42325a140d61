"""Writes a run as the Hugging Face Hub takes it: models, card, and its checkpoints as revisions."""

import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from bert_jax.api.convert import convert
from bert_jax.api.write_report import read_run
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.saved import is_finetuning, read_pretrain_config
from bert_jax.errors import UserError
from bert_jax.interop.initial import initial_params, replace_params
from bert_jax.interop.portable import Portable
from bert_jax.interop.workdir import read_workdir, write_workdir
from bert_jax.model.heads import parts_of
from bert_jax.parallel.mesh import Layout
from bert_jax.pretraining.stages import saved_parts, stage_model
from bert_jax.report.card import Card, card
from bert_jax.report.curves import draw_curves
from bert_jax.storage import read_json, write_text
from bert_jax.terminal import say
from bert_jax.train.checkpoints import saved_steps
from bert_jax.train.weights import TRAINED

MAIN = "main"  # folder and revision of the model itself


def publish(
    workdir: epath.PathLike,
    output: epath.PathLike,
    *,
    name: str = "",
    weights: str = TRAINED,
    license: str = "",
    language: Sequence[str] = (),
    limits: str = "",
    upload: str = "",
    private: bool = False,
) -> list[str]:
    """Writes a folder for each revision, and uploads them if asked to.

    `main` is the newest model of a pretraining run, or the best of a fine-tuning run. `step-N` are
    the checkpoints of a pretraining run. `step-0` is not stored by a run: it is computed again from
    config and seed.

    Args:
      workdir: directory of a run of pretraining or fine-tuning.
      output: local directory, new or empty.
      name: name of the model in its card; the repository, or else the directory of the run.
      weights: which of the run are `main`, "trained", "ema" or "average:N".
      license: identifier of the licence, as the Hub spells it.
      language: codes of languages.
      limits: text about intended use and limits.
      upload: repository on the Hub, OWNER/NAME; empty to upload nothing.
      private: whether a new repository is private.

    Returns:
      The revisions, `main` first.

    Raises:
      UserError: there is no run, the output is in use, or the upload fails.
    """
    workdir, output = epath.Path(workdir), epath.Path(output)
    if upload:
        _hub()  # before anything is written
    run = read_run(workdir, texts=())
    config_file = workdir / "config.json"
    config, steps = None, []
    if not is_finetuning(read_json(config_file)):
        config, steps = read_pretrain_config(config_file), saved_steps(workdir)
    for step in steps:
        _convert(workdir, output / f"step-{step}", step=step)
    if config and steps and not config.branch_from:
        try:
            _write_first(workdir, config, steps[0], output / "step-0")
            steps = [0, *steps]
        except UserError as error:  # the weights that it began with are gone
            say(f"step-0 is left out: {error}")
    source = workdir if config else workdir / "best"
    _convert(source, output / MAIN, weights=weights)
    draw_curves({workdir.name: run.lines}, output / MAIN / "curves.png")
    about = Card(
        name=name or upload or workdir.absolute().name,
        license=license,
        language=language,
        limits=limits,
        sources=_sources(config.stores) if config else (),
        revisions=steps,
        **_facts(read_workdir(source)),
    )
    write_text(output / MAIN / "README.md", card(about, run))
    revisions = [MAIN, *(f"step-{step}" for step in steps)]
    if upload:
        _upload(output, revisions, upload, private)
    return revisions


def _convert(source: epath.Path, target: epath.Path, **which: Any) -> None:
    """Writes a model for transformers. What that leaves out is not reported: the card is."""
    convert(source, target, to="huggingface", report=lambda line: None, **which)


def _write_first(
    workdir: epath.Path, config: PretrainConfig, step: int, target: epath.Path
) -> None:
    """Writes the parameters with which a run began; a checkpoint tells its parts."""
    parts = saved_parts(workdir, step)
    model = read_workdir(workdir, step)
    init = jax.jit(stage_model(config, Layout().mesh(), parts).init)
    params = jax.device_get(init(jax.random.key(config.seed)))
    if config.init_from:
        params = replace_params(params, initial_params(config, model.tokenizer, parts)[0])
    with tempfile.TemporaryDirectory() as scratch:
        write_workdir(epath.Path(scratch), model._replace(params=params, generator=None))
        _convert(epath.Path(scratch), target)


def _sources(stores: Sequence[str]) -> list[dict[str, Any]]:
    """What stores were made from, if they are still there; documents that were added, too."""
    paths = [epath.Path(store) / "manifest.json" for store in stores]
    manifests = [read_json(path) for path in paths if path.exists()]
    parts = [part for each in manifests for part in (each, *each.get("appended", ()))]
    return [source for part in parts for source in part.get("sources", ())]


def _facts(model: Portable) -> dict[str, Any]:
    shape, parts = model.architecture, parts_of(model.params)
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(model.params))
    return {
        "architecture": f"An encoder with {shape.num_layers} layers of {shape.hidden_size} "
        f"features, {shape.num_heads} attention heads and {count:,} parameters, for up to "
        f"{shape.max_position_embeddings} tokens.",
        "parts": parts,
        "mask": model.tokenizer.pieces[model.tokenizer.mask_id],
    }


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("--upload needs huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub


def _upload(output: epath.Path, revisions: Sequence[str], repository: str, private: bool) -> None:
    hub = _hub()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        for revision in revisions:
            if revision != MAIN:
                hub.create_branch(repository, branch=revision, exist_ok=True)
            hub.upload_folder(
                repo_id=repository,
                folder_path=str(output / revision),
                revision=revision,
                commit_message=f"{revision} of bert_jax",
            )
    except Exception as error:  # of many kinds: no network, no permission, no such owner
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--upload={repository}: {reason}; {output} has all the files") from error

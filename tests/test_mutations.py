"""JSON files of models, mutated field by field: an error in one line, or a right result."""

import copy
import json
import shutil
import tarfile

import jax
import numpy as np
import pytest
from etils import epath
from others import write_model
from portables import make_portable
from test_added_tokens import MARKED, add_tokens
from test_older_versions import ARCHIVE

from bert_jax.config.saved import (
    read_finetune_config,
    read_model_config,
    read_pretrain_config,
    read_task,
)
from bert_jax.data.train_tokenizer import train_tokenizer
from bert_jax.errors import UserError
from bert_jax.inference.exported import read_exported, write_exported
from bert_jax.inference.load_bert import digest_of
from bert_jax.interop.formats import read
from bert_jax.interop.google_tf import write_google
from bert_jax.interop.huggingface import write_huggingface
from bert_jax.interop.workdir import write_workdir

pytestmark = pytest.mark.core

NUMBERS = (-1, 0, 3, 10**30, 0.5, float("nan"))
VALUES = (None, True, *NUMBERS, "", "x", "../x", [], [None], {}, {"x": 1})
KINDS = ("huggingface", "modernbert", "bert_jax", "google", "export")
PER_KIND = {"huggingface": 60, "modernbert": 60, "bert_jax": 30, "google": 30, "export": 40}
MODERN = {"type_vocab_size": 0, "norm_position": "pre", "first_norm": False, "final_norm": True}
MODERN |= {"norm_bias": False, "attention_bias": False, "feed_forward_bias": False}
MODERN |= {"feed_forward": "glu", "position_embedding": {"name": "rope"}, "head_bias": False}
MODERN |= {"global_every": 3, "local_window": 8, "pooler": "transform", "num_layers": 3}
MODERN |= {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}


def write_kind(kind, path):
    source = path.parent / "source"
    if kind == "modernbert":
        tokenizer = train_tokenizer("bpe", ["the cat sat on the mat"] * 9, vocab_size=300)
        path.mkdir()
        modern = make_portable(tokenizer, ("masked_lm",), **MODERN)
        write_huggingface(epath.Path(path), modern, pytest.fail)
        return
    write_model(source, "sequence", labels=("a", "b"), vocab=tuple(MARKED), rows=len(MARKED) + 2)
    add_tokens(source)
    if kind == "huggingface":
        source.rename(path)
        fields = {"additional_special_tokens": ["[E1]"], "mask_token": "[MASK]"}
        (path / "special_tokens_map.json").write_text(json.dumps(fields))
        return
    model = read(source)._replace(problem_type="multi_label_classification")
    path = epath.Path(path)
    if kind == "export":
        write_exported(path, model, ["cpu"])
        return
    path.mkdir()
    if kind == "google":
        pytest.importorskip("tensorflow")
        write_google(path, model, lambda line: None)
    else:
        write_workdir(path, model)


def places(value, path=()):
    """The path of every value in a JSON document, of the document itself first."""
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for index in range(min(len(value), 3)):
            yield from places(value[index], (*path, index))


def mutations(document, random, count):
    """Documents with a value taken away, replaced by another, or under another name."""
    paths = [path for path in places(document) if "vocab" not in path or len(path) < 3]
    for _ in range(count):
        *outer, last = (None, *paths[random.integers(len(paths))])
        changed = {None: copy.deepcopy(document)}
        parent = changed
        for step in outer:
            parent = parent[step]
        value = VALUES[random.integers(len(VALUES))]
        if last is not None and random.random() < 0.2:
            del parent[last]
        else:
            parent[last] = value
        yield changed[None], f"{'/'.join(map(str, (*outer[1:], last)))} = {value!r}"


def read_it(path):
    return read_exported(epath.Path(path))[0] if (path / "export.json").exists() else read(path)


def test_configs_of_runs(tmp_path):
    """Also of older versions, which are converted first."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    random, file, messages = np.random.default_rng(0), epath.Path(tmp_path / "config.json"), []
    for run, read_config in (
        ("pretraining", read_pretrain_config),
        ("phases", read_pretrain_config),
        ("finetuning", read_finetune_config),
    ):
        document = json.loads((tmp_path / run / "config.json").read_text())
        for changed, what in mutations(document, random, 200):
            file.write_text(json.dumps(changed))
            for read_part in (read_config, read_model_config, read_task):
                try:
                    read_part(file)
                except UserError as error:
                    messages.append(str(error))
                except Exception as error:
                    raise AssertionError(f"{run}: {what}") from error
    assert messages
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize("kind", KINDS)
def test_every_file(kind, tmp_path):
    whole, path = tmp_path / "whole", tmp_path / "model"
    write_kind(kind, whole)
    expected = read_it(whole)
    shutil.copytree(whole, path)
    files = sorted(file.name for file in path.glob("*.json"))
    random, messages = np.random.default_rng(0), []
    for name in files:
        document = json.loads((whole / name).read_text())
        for changed, what in mutations(document, random, PER_KIND[kind] // len(files)):
            if name == "export.json" and isinstance(changed, dict):  # else all are just damaged
                changed["sha256"] = digest_of(changed)
            (path / name).write_text(json.dumps(changed))
            try:
                found = read_it(path)
            except UserError as error:
                messages.append(str(error))
            except Exception as error:
                raise AssertionError(f"{name}: {what}") from error
            else:
                jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
        shutil.copy(whole / name, path / name)
    assert messages
    assert not [message for message in messages if "\n" in message]

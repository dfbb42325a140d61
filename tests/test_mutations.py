"""JSON files of models, mutated field by field: an error in one line, or a right result."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from others import write_model
from test_added_tokens import MARKED, add_tokens

from bert_jax.errors import UserError
from bert_jax.inference.exported import read_exported, write_exported
from bert_jax.inference.load_bert import digest_of
from bert_jax.interop.formats import read
from bert_jax.interop.google_tf import write_google
from bert_jax.interop.workdir import write_workdir

pytestmark = pytest.mark.core

NUMBERS = (-1, 0, 3, 10**30, 0.5, float("nan"))
VALUES = (None, True, *NUMBERS, "", "x", "../x", [], [None], {}, {"x": 1})
KINDS = ("huggingface", "bert_jax", "google", "export")
PER_KIND = {"huggingface": 60, "bert_jax": 30, "google": 30, "export": 40}


def write_kind(kind, path):
    source = path.parent / "source"
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

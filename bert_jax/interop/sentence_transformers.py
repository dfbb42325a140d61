"""How sentence-transformers makes a vector of a text, read from the files beside a model."""

from dataclasses import dataclass

from etils import epath

from bert_jax.errors import UserError
from bert_jax.interop.portable import VectorSettings
from bert_jax.interop.tensors import Report
from bert_jax.storage import read_json

LENGTH_FILE, MODULES_FILE = "sentence_bert_config.json", "modules.json"
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True)
class Length:
    """Contents of sentence_bert_config.json."""

    max_seq_length: int | None = None
    do_lower_case: bool | None = None


@dataclass(frozen=True)
class Module:
    """A step of modules.json: its class, and the folder of its files."""

    type: str
    path: str = ""


def read_vector_settings(path: epath.Path, report: Report) -> VectorSettings | None:
    """The settings for vectors, None if neither file is there.

    Args:
      path: directory of the model.
      report: called with a line for what is not applied.

    Raises:
      UserError: a file is damaged or names a folder elsewhere.
    """
    length_file, modules_file = path / LENGTH_FILE, path / MODULES_FILE
    if not length_file.exists() and not modules_file.exists():
        return None
    length = read_json(length_file, Length) if length_file.exists() else Length()
    if length.max_seq_length is not None and length.max_seq_length < 3:
        raise UserError(f"{length_file}: max_seq_length: {length.max_seq_length} is too small")
    if length.do_lower_case:
        report(f"not applied: do_lower_case of {LENGTH_FILE}; the tokenizer's casing is used")
    pooling, normalize = "mean", False
    for module in read_json(modules_file, list[Module]) if modules_file.exists() else []:
        kind = module.type.rpartition(".")[2]
        if kind == "Pooling":
            if ".." in module.path.split("/") or module.path.startswith("/"):
                raise UserError(f"{modules_file}: path: {module.path!r} is not in {path}")
            pooling = _pooling(path / module.path / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            pooling = kind  # such as Dense, which is not a pooling of ours
    return VectorSettings(length.max_seq_length, pooling, normalize)


def _pooling(file: epath.Path) -> str:
    """The pooling of a 1_Pooling/config.json: one of `POOLINGS`, or what the file calls it."""
    fields = read_json(file)
    if isinstance(name := fields.get("pooling_mode"), str):
        return name
    modes = [name for name, on in fields.items() if name.startswith("pooling_mode_") and on is True]
    return " and ".join(POOLINGS.get(mode, mode) for mode in modes) or "none"

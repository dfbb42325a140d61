"""Models as ONNX: the graph of their class of transformers, as PyTorch's exporter writes it.

Reference: https://docs.pytorch.org/docs/stable/onnx_export.html.
"""

import dataclasses
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.inference import programs
from bert_jax.inference.functions import live_functions
from bert_jax.interop.choices import ARCHITECTURES
from bert_jax.interop.huggingface import CONFIG_FILE, WEIGHT_FILES, write_huggingface
from bert_jax.interop.portable import Portable, report_left_out
from bert_jax.interop.tensors import Report
from bert_jax.model.heads import ANSWER_SPAN, HEADS, MASKED_LM, MULTIPLE_CHOICE, parts_of
from bert_jax.model.int8 import in_float32, is_int8
from bert_jax.model.parameters import Params
from bert_jax.storage import read_json

FILE = "model.onnx"
RUNTIME = "onnxruntime"
TOLERANCE = 1e-4
SHAPES = ((1, 5), (3, 24), (2, 200))  # batch and length at which results are compared
CHOICES = 3  # of a question in these rows
# Our head by the name of its output; another is the only head of its model.
HEADS_OF = {
    "prediction_logits": "masked_lm",
    "seq_relationship_logits": "next_sentence",
    "start_logits": "answer_span",
    "end_logits": "answer_span",
}


def write_onnx(directory: Path, model: Portable, report: Report) -> None:
    """Writes `model.onnx`, with tokenizer and `config.json` in Hugging Face's format.

    Inputs are int64 [batch, length], both free: `input_ids`, `attention_mask`, and `token_type_ids`
    where there are several types; for multiple choice they are [batch, choices, length]. Outputs
    have the names of the class of transformers, such as `last_hidden_state` and `pooler_output`, or
    `logits`. If ONNX Runtime is installed, its results are compared with the model's.

    Weights are fp32; those of a model in int8 are int8, by ONNX Runtime's dynamic quantisation, and
    what is compared is the graph before that.

    Args:
      directory: empty local directory.
      model: model to write.
      report: called with a line on each thing that is left out, and on the largest difference.

    Raises:
      UserError: no class of transformers has these blocks and parts, or a result differs by more
        than `TOLERANCE`.
    """
    int8 = is_int8(model.params)
    if int8 and find_spec(RUNTIME) is None:
        raise UserError(f"--to=onnx of a model in int8 needs {RUNTIME}: pip install {RUNTIME}")
    model = model._replace(params=in_float32(model.params))
    report_left_out(model, report)
    if model.generator:
        report("left out: the generator")
    # Its lines are on what transformers makes of the weights, which are not kept.
    write_huggingface(epath.Path(directory), model, lambda line: None)
    _write_graph(directory, model)
    (directory / WEIGHT_FILES[0]).unlink()
    if find_spec(RUNTIME) is None:
        report(f"{FILE}: not compared with the model; for that, pip install {RUNTIME}")
        return
    difference = largest_difference(directory / FILE, model)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{FILE} was not written: its results differ from the model's by {difference:.1e}, "
            f"more than {TOLERANCE:.0e}"
        )
    report(f"{FILE}: results differ from the model's by {difference:.1e} at most")
    if int8:
        _quantize(directory / FILE)
        report(
            f"{FILE}: matrices in int8 as they were rounded, the rest by ONNX Runtime's own rule"
        )


def _write_graph(directory: Path, model: Portable) -> None:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    (name,) = read_json(epath.Path(directory / CONFIG_FILE))["architectures"]
    # transformers would give an encoder without pooler a random one.
    lacks_pooler = ARCHITECTURES[name] == ("pooler",) and not parts_of(model.params)
    options = {"add_pooling_layer": False} if lacks_pooler else {}
    network = getattr(transformers, name).from_pretrained(directory, **options).eval()
    rows = {name: torch.from_numpy(x) for name, x in random_rows(model, 2, 16).items()}
    axes = ("batch", "choices", "length") if _has_choices(model) else ("batch", "length")

    class Results(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """The results of the network, without their names."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            return tuple(self.network(**dict(zip(rows, inputs))).values())

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these libraries warn of each other
        program = torch.onnx.export(
            Results().eval(),
            tuple(rows.values()),
            input_names=list(rows),
            output_names=list(network(**rows)),
            dynamic_shapes={"inputs": (dict(enumerate(axes)),) * len(rows)},
            verbose=False,
        )
        assert program is not None  # as always without a file
        program.save(directory / FILE)


def _quantize(file: Path) -> None:
    """Rounds weights to int8, matrices as `in_int8` does, with a scale for each output."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    exact = file.with_suffix(".exact")
    file.rename(exact)
    logging.disable(logging.WARNING)  # it warns of a step that it does not need
    try:
        quantize_dynamic(exact, file, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    exact.unlink()


def largest_difference(file: Path, model: Portable) -> float:
    """The largest difference of a result of ONNX Runtime from ours, at tokens, over `SHAPES`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    differences = []
    for batch, length in SHAPES:
        rows = random_rows(model, batch, length)
        for found, (ours, counts) in zip(session.run(names, rows), _results(model, rows, names)):
            differences.append(np.abs(found.reshape(ours.shape) - ours)[counts].max())
    return float(np.max(differences))  # NaN if there is one


def _results(
    model: Portable, rows: dict[str, np.ndarray], names: list[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Our results by their names, each with where it counts: not at padding."""
    numerics = dataclasses.replace(model.numerics, compute_dtype="float32", fake_int8=False)
    functions = live_functions(model._replace(numerics=numerics))
    length = rows["input_ids"].shape[-1]
    batch = {name: jnp.asarray(x.reshape(-1, length), jnp.int32) for name, x in rows.items()}
    ids, mask = batch["input_ids"], batch["attention_mask"]
    batch.setdefault("token_type_ids", jnp.zeros_like(ids))
    batch |= {
        "position_ids": jnp.broadcast_to(jnp.arange(length), ids.shape),
        "segment_ids": mask,
        "cls_positions": jnp.zeros((len(ids), 1), jnp.int32),
    }

    def result(params: Params, name: str) -> jax.Array:
        """[rows, ...] or [rows, length, ...]."""
        inputs = (functions, params, batch)
        architecture = model.architecture
        if name == "last_hidden_state":
            return programs.hidden_states(*inputs)[-1]
        if name == "pooler_output":
            pooling = architecture.pooling
            return programs.pooled_vectors(*inputs, layers=(-1,), pooling=pooling)[:, 0, 0]
        part = HEADS_OF.get(name) or next(part for part in HEADS if part in model.params)
        found = programs.logits(*inputs, head=HEADS[part], architecture=architecture)
        if part == MASKED_LM.part:
            return found[..., : architecture.vocab_size]
        if part == ANSWER_SPAN.part:
            return found[..., 0 if name == "start_logits" else 1]
        return found[:, 0] if HEADS[part].pooled else found

    results = jax.jit(lambda params: [result(params, name) for name in names])(model.params)
    for found in results:
        counts = mask > 0 if found.shape[:2] == ids.shape else jnp.ones(len(ids), bool)
        yield np.asarray(found), np.asarray(counts)


def random_rows(model: Portable, batch: int, length: int) -> dict[str, np.ndarray]:
    """Inputs of random tokens, by name; every row but the first ends in padding."""
    architecture, pad_id = model.architecture, model.tokenizer.pad_id
    choices = CHOICES if _has_choices(model) else 1
    shape = (batch * choices, min(length, architecture.max_position_embeddings))
    random = np.random.default_rng(length)
    lengths = np.linspace(shape[1], -(-shape[1] // 2), shape[0]).astype(int)
    mask = np.arange(shape[1]) < lengths[:, None]
    ids = random.integers(0, architecture.vocab_size - 1, shape)
    rows = {
        "input_ids": np.where(mask, ids + (ids >= pad_id), pad_id),
        "attention_mask": mask.astype(np.int64),
    }
    if architecture.type_vocab_size > 1:
        rows["token_type_ids"] = random.integers(0, architecture.type_vocab_size, shape)
    if _has_choices(model):
        rows = {name: x.reshape(batch, choices, -1) for name, x in rows.items()}
    return rows


def _has_choices(model: Portable) -> bool:
    return MULTIPLE_CHOICE.part in model.params

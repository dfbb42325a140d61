"""The parts of a model as pure functions of parameters and arrays.

Everything that uses a trained model is composed of these functions, so it works the same on a live
model and on an exported one, which has them in compiled form.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.interop.portable import Portable, structure_of
from bert_jax.model.heads import CROSS_ATTENTION, HEADS, Head, parts_of
from bert_jax.model.model import BertWithHeads
from bert_jax.model.parameters import Params
from bert_jax.model.search import Ids, Search, write_texts

Function = Callable[..., jax.Array]


def part_functions(
    graphdef: nnx.GraphDef[BertWithHeads], parts: Sequence[str]
) -> dict[str, Function]:
    """The functions of a `BertWithHeads`, by name.

    The first argument of each is the whole nested dict of parameters. All results are fp32.

    - encoder(params, input_ids, token_type_ids, position_ids, segment_ids), [batch, length] int32
      as `Bert` takes them -> [num_layers + 1, batch, length, hidden]: embeddings and every layer.
      Those of a live model also take `causal`, bool of the same shape, and `embeddings`, fp32
      [batch, length, hidden], as `Bert` does.
    - attention(params, hidden_states, segment_ids): result of `encoder` -> probabilities
      [num_layers, batch, heads, query, key].
    - pooler(params, hidden [n, hidden]): hidden states of [CLS] -> [n, hidden].
    - each head(params, hidden [n, hidden]) -> logits [n, outputs]. It takes results of `pooler`
      where `Head.uses_pooler`, else hidden states; the outputs of masked_lm are the vocabulary.

    Args:
      graphdef: graph definition of the model.
      parts: those of `bert_jax.model.heads.PARTS` that it has.
    """

    def model(params: Params) -> Any:  # its attributes are set by name
        return nnx.merge(graphdef, params)

    def encoder(
        params: Params,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        position_ids: jax.Array,
        segment_ids: jax.Array,
        causal: jax.Array | None = None,
        embeddings: jax.Array | None = None,
    ) -> jax.Array:
        inputs = (input_ids, token_type_ids, position_ids, segment_ids)
        options = {"causal": causal, "embeddings": embeddings}
        hidden = model(params).bert(*inputs, all_layers=True, **options)
        return hidden.astype(jnp.float32)

    def attention(params: Params, hidden_states: jax.Array, segment_ids: jax.Array) -> jax.Array:
        return model(params).bert.attention_probabilities(hidden_states, segment_ids)

    def pooler(params: Params, hidden: jax.Array) -> jax.Array:
        return model(params).bert.pool(hidden).astype(jnp.float32)

    def outputs(head: Head) -> Function:
        return lambda params, hidden: head.apply(model(params), hidden)

    functions: dict[str, Function] = {"encoder": encoder, "attention": attention}
    if "pooler" in parts:
        functions["pooler"] = pooler
    return functions | {part: outputs(head) for part, head in HEADS.items() if part in parts}


def live_functions(model: Portable) -> dict[str, Function]:
    """The functions of a model, in its own numerics; see `part_functions`.

    A model with a decoder also has write(params, rows, search); see
    `bert_jax.model.search.write_texts`.
    """
    # Unrolled layers would each copy their slice of the stacked parameters in every call.
    numerics = dataclasses.replace(model.numerics, scan_layers=True, remat="none")
    graphdef = structure_of(model._replace(numerics=numerics)).graphdef
    functions = part_functions(graphdef, parts_of(model.params))
    tokenizer = model.tokenizer
    ids = Ids(tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)

    def write(params: Params, rows: Mapping[str, jax.Array], search: Search) -> jax.Array:
        return write_texts(nnx.merge(graphdef, params), rows, search, ids)

    if CROSS_ATTENTION in model.params:
        functions["write"] = write
    if numerics.compute_dtype == "float32":
        return {name: _exact(function) for name, function in functions.items()}
    return functions


def _exact(function: Function) -> Function:
    """Multiplies in full fp32, also where hardware would round the factors to bf16."""

    def exact(*arguments: Any) -> jax.Array:
        with jax.default_matmul_precision("float32"):
            return function(*arguments)

    return exact

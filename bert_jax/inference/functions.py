"""The parts of a model as pure functions of parameters and arrays.

Everything that uses a trained model is composed of these, so it works alike on a live model and on
an exported one, whose parts are the same functions in compiled form.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]


def part_functions(graphdef: nnx.GraphDef, parts: tuple[str, ...]) -> dict[str, Callable]:
    """The functions of a `BertWithHeads`, by name.

    The first argument of each is the whole nested dict of parameters. All results are fp32.

    - encoder(params, input_ids, token_type_ids, position_ids, segment_ids), [batch, length] int32
      as `Bert` takes them -> [num_layers + 1, batch, length, hidden]: embeddings and every layer.
    - attention(params, hidden_states, segment_ids): what `encoder` gave -> probabilities
      [num_layers, batch, heads, query, key].
    - pooler(params, hidden [n, hidden]), of the [CLS] -> [n, hidden].
    - masked_lm(params, hidden [n, hidden]) -> logits [n, padded_vocab].
    - next_sentence, sequence_classifier(params, pooled [n, hidden]) -> logits [n, classes].
    - token_classifier, answer_span(params, hidden [n, hidden]) -> logits [n, classes].

    Args:
      graphdef: of the model.
      parts: which of `bert_jax.model.heads.PARTS` it has.
    """

    def model(params: Params) -> nnx.Module:
        return nnx.merge(graphdef, params)

    def encoder(params, input_ids, token_type_ids, position_ids, segment_ids):
        bert = model(params).bert
        hidden = bert(input_ids, token_type_ids, position_ids, segment_ids, all_layers=True)
        return hidden.astype(jnp.float32)

    def attention(params, hidden_states, segment_ids):
        return model(params).bert.attention_probabilities(hidden_states, segment_ids)

    def pooler(params, hidden):
        return model(params).bert.pool(hidden).astype(jnp.float32)

    def masked_lm(params, hidden):
        bert = model(params)
        return bert.masked_lm(hidden, bert.bert.embeddings.word.embedding[...])

    def head(name: str) -> Callable:
        return lambda params, hidden: getattr(model(params), name)(hidden)

    own = {"pooler": pooler, "masked_lm": masked_lm}
    functions = {name: own.get(name) or head(name) for name in parts}
    return {"encoder": encoder, "attention": attention} | functions

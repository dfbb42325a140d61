"""Position encodings for other formats, which have learned vectors only."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.interop.portable import Portable
from bert_jax.interop.tensors import Report
from bert_jax.model.positions import Learned, Sinusoidal

TABLE = "bert/embeddings/position/embedding"


def with_learned_positions(model: Portable, report: Report) -> Portable:
    """The same model with learned positions in place of fixed vectors; others are unchanged.

    Args:
      model: a model with any position encoding.
      report: called with a line if fixed vectors become learned ones.
    """
    architecture = model.architecture
    encoding = architecture.position_embedding
    if type(encoding) is not Sinusoidal:
        return model
    position_ids = jnp.arange(architecture.max_position_embeddings)[None]
    vectors = encoding.vectors(None, position_ids, architecture)
    params = flatten_dict(model.params, sep="/") | {TABLE: np.asarray(vectors)[0]}
    report("written as learned positions: the sinusoidal ones")
    return model._replace(
        architecture=dataclasses.replace(architecture, position_embedding=Learned()),
        params=unflatten_dict(params, sep="/"),
    )

"""Shapes of a model's parameters, taken from the model itself, with and without padding."""

from collections.abc import Mapping

import jax
from etils import epath
from flax.traverse_util import flatten_dict

from bert_jax.errors import UserError
from bert_jax.model.architecture import Architecture
from bert_jax.model.model import Model
from bert_jax.model.parameters import Params

Shapes = Mapping[str, tuple[int, ...]]  # by path, as in "bert/pooler/kernel"


def parameter_shapes(model: Model) -> Shapes:
    """The shape of each parameter; computes nothing."""
    return shapes_of(jax.eval_shape(model.init, jax.random.key(0)))


def unpadded_shapes(model: Model, architecture: Architecture) -> Shapes:
    """The same without the rows that pad the vocabulary."""
    return {
        path: tuple(
            architecture.vocab_size if axis == "vocab" else size
            for axis, size in zip(model.axes[path], shape, strict=True)
        )
        for path, shape in parameter_shapes(model).items()
    }


def shapes_of(params: Params) -> Shapes:
    """The shape of each array in a nested dict."""
    return {path: array.shape for path, array in flatten_dict(params, sep="/").items()}


def check_shapes(path: epath.Path, expected: Shapes, params: Params) -> None:
    """Raises UserError, naming `path`, if parameters are missing, unknown or of wrong shape.

    Args:
      path: directory that they were read from.
      expected: shapes of the model that its config describes.
      params: nested dict of arrays.
    """
    found = shapes_of(params)
    for name in {**expected, **found}:
        here, there = (shapes.get(name, "nothing") for shapes in (found, expected))
        if here != there:
            raise UserError(
                f"{path}: cannot be restored into this model: {name} is {here}, but must be "
                f"{there}; is its config that of the model?"
            )

"""A model beside its teacher: a trained encoder that it learns from, and that stays as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flax import nnx

from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.model import BertWithHeads, Model, model_of
from bert_jax.model.parameters import Params, linear

# Their names in the parameters.
TEACHER = "teacher"
PROJECTION = "projection"


class BertWithTeacher(BertWithHeads):
    """A model, and its teacher beside it.

    Args of the constructor, besides those of `BertWithHeads`:
      teacher: architecture of the teacher.
      teacher_parts: which of `bert_jax.model.heads.PARTS` it has.
      projected: whether the model's states are compared with the teacher's. If their widths
        differ, `projection`, a dense layer in fp32, is between them.
    """

    def __init__(
        self,
        architecture: Architecture,
        numerics: Numerics,
        parallel: Parallel,
        rngs: nnx.Rngs,
        *,
        parts: Sequence[str],
        outputs: int = 0,
        teacher: Architecture,
        teacher_parts: Sequence[str],
        projected: bool = False,
    ):
        super().__init__(architecture, numerics, parallel, rngs, parts=parts, outputs=outputs)
        sizes = (architecture.hidden_size, teacher.hidden_size)
        if projected and sizes[0] != sizes[1]:
            self.projection = linear(("embed", "hidden"), sizes, architecture, rngs)
        exact = replace(numerics, fake_int8=False)
        self.teacher = BertWithHeads(
            teacher, exact, parallel, rngs, parts=teacher_parts, outputs=outputs
        )


def model_with_teacher(
    architecture: Architecture, numerics: Numerics, parallel: Parallel, **others: Any
) -> Model:
    """The `Model` of a `BertWithTeacher`, from the arguments of its constructor.

    Its `init` makes what is trained. The step adds the teacher's parameters as `TEACHER`; `axes`
    has theirs, too.
    """
    model = model_of(lambda rngs: BertWithTeacher(architecture, numerics, parallel, rngs, **others))
    return model._replace(init=lambda key: _without(model.init(key), TEACHER))


def without_projection(params: Mapping[str, Any]) -> Params:
    """The parameters of the model itself, of those that were trained."""
    return _without(params, PROJECTION)


def _without(params: Mapping[str, Any], name: str) -> Params:
    return {key: value for key, value in params.items() if key != name}

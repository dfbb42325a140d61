"""A masking strategy with a parameter: units of up to `size` tokens, whatever the words are."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bert_jax.fields import POSITIVE, field
from bert_jax.objective.masking import Masking


@dataclass(frozen=True)
class Blocks(Masking):
    """A unit begins at every `size`-th position and after each special token."""

    size: int = field(3, "tokens of a unit", bounds=POSITIVE)

    def units(
        self,
        is_continuation: jax.Array,
        is_candidate: jax.Array,
        order_bits: jax.Array,
        more_bits: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        begins = jnp.arange(is_candidate.shape[1]) % self.size == 0
        after_special = ~jnp.pad(is_candidate, ((0, 0), (1, 0)))[:, :-1]
        return is_candidate & (begins | after_special), order_bits

"""Which weights of a run to read; imports nothing heavy, so that an option is checked at once."""

import re
from typing import NamedTuple

from bert_jax.errors import UserError

TRAINED, EMA = "trained", "ema"
MEANING = (
    f"{TRAINED}: the parameters; {EMA}: their running average, which a run keeps if its "
    "optimizer.ema_decay is set; average:N: the mean of the parameters of the last N checkpoints"
)
_MEAN = re.compile(r"average:([1-9]\d*)")


class Weights(NamedTuple):
    """What to read.

    Attributes:
      member: "params" or "ema", a member of `bert_jax.train.state.TrainState`.
      checkpoints: of how many to take the mean.
    """

    member: str
    checkpoints: int = 1


def parse_weights(text: str, path: str = "weights") -> Weights:
    """What "trained", "ema" or "average:N" means.

    Raises:
      UserError: it is none of them; the message begins with `path`.
    """
    if text in (TRAINED, EMA):
        return Weights("params" if text == TRAINED else "ema")
    if found := _MEAN.fullmatch(text):
        return Weights("params", int(found[1]))
    raise UserError(f"{path}={text!r}: use {TRAINED}, {EMA} or average:N, such as average:3")

"""Scores of texts by a masked language model."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from bert_jax.data.masked_copies import Tokens
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.objective.hybrid import Hybrid
from bert_jax.storage import read_json


def default_method(path: epath.PathLike) -> str:
    """The method of scoring that fits a model: for runs of `hybrid` "mntp" or "causal"."""
    file = epath.Path(path) / "config.json"
    objective = read_json(file).get("objective") if file.exists() else None
    if not isinstance(objective, dict) or objective.get("name") != Hybrid.called():
        return "pll"
    return "causal" if objective.get("causal_share") == 1 else "mntp"


class Score(NamedTuple):
    """How probable a model finds a text.

    Attributes:
      total: sum of `log_probs`, in nats: the pseudo-log-likelihood, or by "causal" the
        log-likelihood; 0 for a text without tokens.
      tokens: the tokens of the text, without [CLS] and [SEP].
      log_probs: fp32 [tokens], log probability of each in nats.
    """

    total: float
    tokens: list[str]
    log_probs: np.ndarray


def by_text(
    texts: deque[Tokens], log_probs: Iterable[float], tokenizer: Tokenizer
) -> Iterator[Score]:
    """The scores of texts, from the log probabilities of all their tokens.

    Args:
      texts: texts in order, each there before its first log probability; they are removed.
      log_probs: log probability of each token of each text.
      tokenizer: gives the tokens by id.
    """
    part: list[float] = []
    for log_prob in itertools.chain(log_probs, [0.0]):
        while texts and len(part) == len(texts[0].ids):
            tokens = [tokenizer.vocab[id_] for id_ in texts.popleft().ids]
            found = np.array(part, np.float32)
            yield Score(float(found.sum(dtype=np.float64)), tokens, found)
            part = []
        part.append(log_prob)

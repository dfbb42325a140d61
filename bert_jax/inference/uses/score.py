"""Scores of texts by a masked language model."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from bert_jax.data.masked_copies import Copy, Tokens, masked_copies, pack_copies, tokens_of
from bert_jax.data.packing import Batch, Example
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.inference import programs
from bert_jax.inference.choices import METHODS
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import checked
from bert_jax.model.heads import MASKED_LM
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


def score(runner: Runner, texts: Iterable[str], method: str) -> Iterator[Score]:
    """The score of each text by one of `METHODS`; see `TrainedBert.score`."""
    if method not in METHODS:
        raise UserError(f"method={method!r}: use one of {', '.join(METHODS)}")
    runner.require(*MASKED_LM.parts(runner.architecture))
    if method == "causal":
        return _causal_scores(runner, texts)
    program, tokenizer = runner.program(programs.log_probabilities, exact=True), runner.tokenizer
    masks = {"within_word": method == "within-word", "from_before": method == "mntp"}
    waiting: deque[Tokens] = deque()

    def copies() -> Iterator[Copy]:
        for tokens in _tokenized(runner, texts):
            waiting.append(tokens)
            yield from masked_copies(tokenizer, tokens, **masks)

    def pack(some: Sequence[Copy]) -> list[Batch]:
        return pack_copies(some, runner.devices.batches)

    def start(batch: Batch) -> jax.Array:
        return program(runner.params, runner.devices.put(batch))

    def finish(batch: Batch, found: np.ndarray) -> Iterable[float]:
        return found[batch.row, batch.slot].tolist()

    found = runner.devices.run_packed(copies(), pack, start, finish)
    return by_text(waiting, found, tokenizer)


def _causal_scores(runner: Runner, texts: Iterable[str]) -> Iterator[Score]:
    if runner.is_export:
        raise UserError("an export has no causal scores: use the model that it was made from")
    program = runner.program(programs.next_log_probabilities, exact=True)
    tokenizer = runner.tokenizer
    waiting: deque[Tokens] = deque()

    def examples() -> Iterator[Example]:
        for tokens in _tokenized(runner, texts):
            waiting.append(tokens)
            ids = np.array([tokenizer.cls_id, *tokens.ids, tokenizer.sep_id], np.int32)
            yield Example(ids, len(ids))

    def start(batch: Batch) -> jax.Array:
        return program(runner.params, runner.devices.put(batch))

    def finish(batch: Batch, found: np.ndarray) -> list[np.ndarray]:
        places = zip(batch.row, batch.start, batch.stop)
        return [found[row, first : stop - 2] for row, first, stop in places]

    of_texts = runner.devices.run(examples(), start, finish)
    log_probs = (float(x) for of_text in of_texts for x in of_text)
    return by_text(waiting, log_probs, tokenizer)


def _tokenized(runner: Runner, texts: Iterable[str]) -> Iterator[Tokens]:
    """The tokens of texts, between [CLS] and [SEP]."""

    def tokenize(text: str) -> tuple[Tokens, int]:
        ids, continues = tokens_of(runner.tokenizer, text)
        kept = runner.limit - 2
        return Tokens(ids[:kept], continues[:kept]), max(0, len(ids) - kept)

    return runner.reported(checked(texts, pair=False), runner.limit, tokenize)


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

"""Scores of a suite: how often a model prefers the right sentence."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from bert_jax.data.suites import Acceptability, Paradigm, SuiteName, read_suite, subsample

# Scores that differ by no more, in nats, are equal: sums in fp32 are not exact.
TIE = 1e-4


class Results(Protocol):
    """What a model reaches on a suite.

    Attributes:
      chance: value of the metrics that a guess reaches.
    """

    chance: ClassVar[float]

    def metrics(self) -> dict[str, float]:
        """Scores by name: the first is that of the whole suite, NAME/PART that of a part."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""


class Suite(Protocol):
    """Texts to score, and what their scores say.

    Attributes:
      texts: the texts.
    """

    @property
    def texts(self) -> list[str]: ...

    def results(self, totals: np.ndarray, counts: np.ndarray) -> Results:
        """What a model reaches.

        Args:
          totals: float64 [texts], scores of the texts in nats.
          counts: int [texts], their numbers of tokens.
        """

    def details(self, totals: np.ndarray, counts: np.ndarray) -> Iterator[dict[str, Any]]:
        """Each pair or sentence with its scores, as plain values."""


@dataclass(frozen=True)
class Share:
    """Share of pairs whose right sentence scores higher; ties count one half.

    Attributes:
      accuracy: the share, in [0, 1].
      standard_error: of the accuracy, if the pairs were drawn anew (binomial).
      pairs, ties: their numbers.
      paradigms: number of paradigms.
    """

    accuracy: float
    standard_error: float
    pairs: int
    ties: int
    paradigms: int = 1


@dataclass(frozen=True)
class PairResults:
    """What a model reaches on minimal pairs.

    Attributes:
      by_paradigm: name -> share.
      by_group: kind of group -> group -> mean over its paradigms.
      over_paradigms: mean over all paradigms; the accuracy that papers report.
      over_pairs: mean over all pairs.
      groups: name of a paradigm -> its groups.
    """

    by_paradigm: Mapping[str, Share]
    by_group: Mapping[str, Mapping[str, Share]]
    over_paradigms: Share
    over_pairs: Share
    groups: Mapping[str, Mapping[str, str]]

    chance: ClassVar[float] = 0.5

    def metrics(self) -> dict[str, float]:
        """The mean over all paradigms, then those of the widest groups."""
        by_group = next(iter(self.by_group.values()), {})
        others = {f"accuracy/{name}": share.accuracy for name, share in by_group.items()}
        return {"accuracy": self.over_paradigms.accuracy} | others

    def to_dict(self) -> dict[str, Any]:
        return {
            "chance": self.chance,
            "over_paradigms": dataclasses.asdict(self.over_paradigms),
            "over_pairs": dataclasses.asdict(self.over_pairs),
            **{
                f"by_{kind}": {name: dataclasses.asdict(share) for name, share in shares.items()}
                for kind, shares in self.by_group.items()
            },
            "by_paradigm": {
                name: dict(self.groups[name]) | dataclasses.asdict(share)
                for name, share in self.by_paradigm.items()
            },
        }


class MinimalPairs:
    """A suite of minimal pairs."""

    def __init__(self, paradigms: Sequence[Paradigm]):
        self._paradigms = paradigms

    @property
    def texts(self) -> list[str]:
        """The right and the wrong sentence of each pair in turn."""
        return [text for paradigm in self._paradigms for pair in paradigm.pairs for text in pair]

    def results(self, totals: np.ndarray, counts: np.ndarray) -> PairResults:
        del counts
        shares, start = {}, 0
        for paradigm in self._paradigms:
            good, bad = totals[start : start + 2 * len(paradigm.pairs)].reshape(-1, 2).T
            shares[paradigm.name] = _share(good - bad)
            start += 2 * len(paradigm.pairs)
        groups = {paradigm.name: paradigm.groups for paradigm in self._paradigms}
        members: dict[str, dict[str, list[Share]]] = {}
        for name, of_paradigm in groups.items():
            for kind, group in of_paradigm.items():
                members.setdefault(kind, {}).setdefault(group, []).append(shares[name])
        every = list(shares.values())
        return PairResults(
            by_paradigm=shares,
            by_group={
                kind: {group: _over_paradigms(found) for group, found in of_kind.items()}
                for kind, of_kind in members.items()
            },
            over_paradigms=_over_paradigms(every),
            over_pairs=_over_pairs(every),
            groups=groups,
        )

    def details(self, totals: np.ndarray, counts: np.ndarray) -> Iterator[dict[str, Any]]:
        scores = zip(totals.reshape(-1, 2).tolist(), counts.reshape(-1, 2).tolist())
        for paradigm in self._paradigms:
            for pair, ((good, bad), (of_good, of_bad)) in zip(paradigm.pairs, scores):
                yield {
                    "paradigm": paradigm.name,
                    "sentence_good": pair.good,
                    "sentence_bad": pair.bad,
                    "score_good": round(good, 6),
                    "score_bad": round(bad, 6),
                    "num_tokens_good": of_good,
                    "num_tokens_bad": of_bad,
                }


def _share(differences: np.ndarray) -> Share:
    """Share of the pairs with these differences, right minus wrong."""
    ties = int((np.abs(differences) <= TIE).sum())
    better = int((differences > TIE).sum())
    accuracy = (better + ties / 2) / len(differences)
    error = math.sqrt(accuracy * (1 - accuracy) / len(differences))
    return Share(accuracy, error, len(differences), ties)


def _over_paradigms(shares: Sequence[Share]) -> Share:
    return _weighted(shares, np.full(len(shares), 1 / len(shares)))


def _over_pairs(shares: Sequence[Share]) -> Share:
    pairs = np.array([share.pairs for share in shares])
    return _weighted(shares, pairs / pairs.sum())


def _weighted(shares: Sequence[Share], weights: np.ndarray) -> Share:
    """A weighted mean; its error is that of new pairs of the same paradigms."""
    errors = np.array([share.standard_error for share in shares])
    return Share(
        accuracy=float(weights @ [share.accuracy for share in shares]),
        standard_error=float(np.sqrt(np.square(weights * errors).sum())),
        pairs=sum(share.pairs for share in shares),
        ties=sum(share.ties for share in shares),
        paradigms=len(shares),
    )


@dataclass(frozen=True)
class Separation:
    """How well scores tell acceptable sentences from others.

    Attributes:
      auc: probability that an acceptable sentence scores higher than an unacceptable one; ties
        count one half. It needs no threshold.
      auc_standard_error: of that (Hanley and McNeil 1982).
      best_matthews: Matthews' correlation in [-1, 1] with the threshold that is best on these very
        sentences, so it is more than one would reach on others.
      threshold: the score from which on a sentence then counts as acceptable.
    """

    auc: float
    auc_standard_error: float
    best_matthews: float
    threshold: float


@dataclass(frozen=True)
class AcceptabilityResults:
    """What a model reaches on sentences with labels.

    Attributes:
      by_score: "total", the sum over the tokens, and "per_token", their mean -> separation.
      sentences, acceptable: their numbers.
    """

    by_score: Mapping[str, Separation]
    sentences: int
    acceptable: int

    chance: ClassVar[float] = 0.5

    def metrics(self) -> dict[str, float]:
        """AUC of the sums, then of the means."""
        return {"auc": self.by_score["total"].auc, "auc/per_token": self.by_score["per_token"].auc}

    def to_dict(self) -> dict[str, Any]:
        return {
            "chance": {"auc": self.chance, "best_matthews": 0.0},
            "sentences": self.sentences,
            "acceptable": self.acceptable,
            **{name: dataclasses.asdict(found) for name, found in self.by_score.items()},
        }


class LabelledSentences:
    """A suite of sentences with labels."""

    def __init__(self, data: Acceptability):
        self._data = data

    @property
    def texts(self) -> list[str]:
        """The sentences."""
        return self._data.sentences

    def results(self, totals: np.ndarray, counts: np.ndarray) -> AcceptabilityResults:
        labels = self._data.labels
        by_score = {
            "total": separation(labels, totals),
            "per_token": separation(labels, totals / np.maximum(counts, 1)),
        }
        return AcceptabilityResults(by_score, len(labels), int(labels.sum()))

    def details(self, totals: np.ndarray, counts: np.ndarray) -> Iterator[dict[str, Any]]:
        columns = (self._data.sentences, self._data.labels, totals.tolist(), counts.tolist())
        for sentence, label, score, count in zip(*columns, strict=True):
            yield {
                "sentence": sentence,
                "label": int(label),
                "score": round(score, 6),
                "num_tokens": count,
            }


def separation(labels: np.ndarray, scores: np.ndarray) -> Separation:
    """How well scores tell sentences apart.

    Args:
      labels: bool [n], with both values.
      scores: float [n].
    """
    positive, negative = np.sort(scores[labels]), np.sort(scores[~labels])
    below, up_to = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
    auc = float(np.mean(below + up_to) / 2 / len(negative))
    # Hanley and McNeil's formula.
    q_1, q_2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (len(positive) - 1) * (q_1 - auc**2) + (len(negative) - 1) * (q_2 - auc**2)
    error = math.sqrt((auc * (1 - auc) + spread) / len(positive) / len(negative))
    thresholds = np.unique(scores)
    right, wrong = (
        len(found) - np.searchsorted(found, thresholds).astype(float)
        for found in (positive, negative)
    )
    chosen, rest = right + wrong, len(scores) - right - wrong
    covariance = right * len(negative) - wrong * len(positive)
    scale = np.sqrt(chosen * rest * len(positive) * len(negative))
    matthews = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)
    best = int(matthews.argmax())
    return Separation(auc, error, float(matthews[best]), float(thresholds[best]))


def open_suite(name: SuiteName, pairs: int = 0) -> Suite:
    """Reads a suite.

    Args:
      name: kind and path.
      pairs: how many pairs of each paradigm to take, or pairs of an acceptable and an unacceptable
        sentence; 0 for all.

    Raises:
      UserError: see `read_suite`.
    """
    found = read_suite(name)
    if isinstance(found, Acceptability):
        return LabelledSentences(_some(found, pairs) if pairs else found)
    if pairs:
        found = [dataclasses.replace(each, pairs=subsample(each.pairs, pairs)) for each in found]
    return MinimalPairs(found)


def _some(data: Acceptability, count: int) -> Acceptability:
    """At most `count` sentences of each label."""
    of_label = [np.flatnonzero(data.labels == label).tolist() for label in (False, True)]
    kept = sorted(index for indices in of_label for index in subsample(indices, count))
    return Acceptability([data.sentences[index] for index in kept], data.labels[kept])

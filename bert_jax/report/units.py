"""Units of metrics, rates and times: how they are printed and drawn."""

from collections.abc import Mapping, Sequence

# Shares in [0, 1], which are printed and drawn as percentages.
_SHARES = ("accuracy", "f1", "precision", "recall", "exact_match", "padding", "auc")


def is_share(metric: str) -> bool:
    """Whether a metric is a share: its name before "/" or "@" ends in accuracy, f1 and so on."""
    return metric.partition("/")[0].partition("@")[0].endswith(_SHARES)


def shown(metric: str, value: float) -> str:
    """The value of a metric as text: 72.3% of a share, otherwise four digits."""
    return f"{value:.1%}" if is_share(metric) else f"{value:.4g}"


def listed(metrics: Mapping[str, float]) -> str:
    """Metrics in one line, with their names."""
    return "  ".join(f"{name} {shown(name, value)}" for name, value in metrics.items())


def titled(metric: str, *, is_regression: bool) -> str:
    """The name of a metric with its unit, for the title of a panel.

    Args:
      metric: name of a metric of a task.
      is_regression: whether the task predicts scores, so that "loss" is a squared error.
    """
    if metric == "loss":
        return "loss (squared error)" if is_regression else "loss (nats)"
    return f"{metric} (%)" if is_share(metric) else metric


def compact(count: float, units: Sequence[str] = ("", "k", "M", "G")) -> str:
    """A count in three digits: 987, 12.3k, 1.23M."""
    if count < 999.5 or len(units) == 1:
        return f"{count:.3g}{units[0]}"
    return compact(count / 1000, units[1:])


def duration(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

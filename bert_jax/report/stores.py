"""What stores hold, as text, as a picture and as a self-contained page."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bert_jax.report.figures import label, save
from bert_jax.report.page import picture, table
from bert_jax.report.templates import fill

_BAR = 40  # characters of the longest bar
_BARS = 12  # of a histogram of text
_MARKS = (
    "{TRUE} is masked, {SEEN|TRUE} is to be predicted, too, but another or the same token is seen"
)
_QUANTILES = (0.01, 0.5, 0.99)


class Lengths(Protocol):
    """How often each length occurs; see `bert_jax.data.contents.Lengths`."""

    @property
    def mean(self) -> float: ...
    def quantile(self, share: float) -> int: ...
    def bins(self) -> tuple[np.ndarray, np.ndarray]: ...
    @property
    def are_varied(self) -> bool: ...


class Documents(Protocol):
    """See `bert_jax.data.contents.Documents`."""

    @property
    def sentence_lengths(self) -> Lengths: ...
    @property
    def document_lengths(self) -> Lengths: ...
    @property
    def duplicates(self) -> float: ...


class Contents(Protocol):
    """See `bert_jax.api.inspect.Contents`."""

    @property
    def path(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def vocabulary(self) -> str: ...
    @property
    def sizes(self) -> Mapping[str, Mapping[str, int]]: ...
    @property
    def documents(self) -> Documents | None: ...
    @property
    def example_lengths(self) -> Lengths: ...
    @property
    def max_seq_length(self) -> int: ...
    @property
    def counts(self) -> np.ndarray: ...
    @property
    def frequent(self) -> Sequence[tuple[str, float]]: ...
    @property
    def unknown(self) -> float: ...
    @property
    def unused(self) -> int: ...
    @property
    def examples(self) -> Sequence[Sequence[str]]: ...


def lines(store: Contents) -> Iterator[str]:
    """What a store holds, as lines of plain text."""
    yield store.path
    for name, value in _facts(store):
        yield f"  {name}: {value}"
    for title, lengths in _all_lengths(store):
        yield ""
        yield f"{title}: {_quantiles(lengths)}"
        yield from _bars(lengths)
    yield ""
    yield "most frequent pieces, and their shares of the tokens"
    shown = [f"{piece!r} {share:.2%}" for piece, share in store.frequent]
    for start in range(0, len(shown), 4):
        yield "  " + "".join(f"{each:<20}" for each in shown[start : start + 4]).rstrip()
    if store.examples:
        yield ""
        yield f"examples: {_MARKS}"
        for head, *parts in store.examples:
            yield f"  {head}"
            yield from (f"    {part}" for part in parts)


def draw(path: epath.PathLike, stores: Sequence[Contents]) -> None:
    """Draws the lengths and the frequencies of pieces of one or more stores.

    Args:
      path: path of the PNG.
      stores: what is drawn; several share the panels.
    """
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    panels: list[Axes] = [axes for row in figure.subplots(2, 2) for axes in row]
    names = [label(store.path) for store in stores]
    found = [dict(_all_lengths(store)) for store in stores]
    titles = list(dict.fromkeys(title for each in found for title in each))
    for title, axes in zip(titles, panels):
        for each, name in zip(found, names):
            if title in each:
                edges, shares = each[title].bins()
                axes.stairs(shares * 100, edges, fill=len(stores) == 1, alpha=0.9, label=name)
                if each[title].are_varied:
                    axes.set_xscale("log")
        axes.set(title=title.capitalize(), xlabel="tokens", ylabel="share of them (%)")
    axes = panels[len(titles)]
    for store, name in zip(stores, names):
        counts = np.sort(store.counts[store.counts > 0])[::-1]
        axes.loglog(np.arange(1, len(counts) + 1), counts / counts.sum() * 100, label=name)
    axes.set(title="Pieces by frequency", xlabel="rank", ylabel="share of the tokens (%)")
    for unused in panels[len(titles) + 1 :]:
        unused.set_visible(False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):  # pictures show no formulas, such as powers of 10
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
            axis.set_minor_formatter(NullFormatter())
    if len(stores) > 1:
        shown = panels[len(titles)].get_legend_handles_labels()
        figure.legend(*shown, loc="outside lower center", ncols=2)
    save(figure, path, dpi=110)


def write_page(path: epath.PathLike, stores: Sequence[Contents], drawn: bytes) -> None:
    """Writes a self-contained HTML page about one or more stores.

    Args:
      path: path of the HTML file.
      stores: what it shows; several are side by side.
      drawn: PNG of `draw`.
    """
    title = stores[0].path if len(stores) == 1 else f"{len(stores)} stores"
    fill(path, title, "\n".join(_body(stores, drawn)))


def _body(stores: Sequence[Contents], drawn: bytes) -> Iterator[str]:
    names = [store.path for store in stores] if len(stores) > 1 else [""]
    yield table(["", *names], _side_by_side([_facts(store) for store in stores]))
    yield "<h2>Lengths and frequencies</h2>"
    yield picture(drawn, "Histograms of lengths, and frequencies of pieces by rank")
    lengths = [
        [(title, _quantiles(each)) for title, each in _all_lengths(store)] for store in stores
    ]
    yield table(["", *names], _side_by_side(lengths))
    for store in stores:
        of = f": {html.escape(store.path)}" if len(stores) > 1 else ""
        yield f"<h2>Most frequent pieces{of}</h2>"
        yield table(["piece", "share"], ([repr(p), f"{share:.2%}"] for p, share in store.frequent))
        if store.examples:
            yield f"<h2>Examples{of}</h2>"
            yield f'<p class="quiet">{_MARKS}.</p>'
            for head, *parts in store.examples:
                yield f"<h3>{html.escape(head)}</h3>"
                yield "".join(f"<p>{html.escape(part)}</p>" for part in parts)


def _side_by_side(columns: Sequence[Iterable[tuple[str, str]]]) -> Iterator[list[str]]:
    found = [dict(column) for column in columns]
    for name in dict.fromkeys(name for each in found for name in each):
        yield [name, *(each.get(name, "") for each in found)]


def _facts(store: Contents) -> Iterator[tuple[str, str]]:
    for split, sizes in store.sizes.items():
        yield split, ", ".join(f"{number:,} {name}" for name, number in sizes.items())
    yield "vocabulary", store.vocabulary
    yield "unknown", f"{store.unknown:.3%} of the tokens"
    yield "never used", f"{store.unused:,} of {len(store.counts):,} tokens of the vocabulary"
    if store.documents is not None:
        yield "copies", f"{store.documents.duplicates:.2%} of the documents repeat an earlier one"


def _all_lengths(store: Contents) -> Iterator[tuple[str, Lengths]]:
    if store.documents is not None:
        yield "tokens of a document", store.documents.document_lengths
        yield "tokens of a sentence", store.documents.sentence_lengths
    yield f"tokens of an example, at most {store.max_seq_length}", store.example_lengths


def _quantiles(lengths: Lengths) -> str:
    least, median, most = map(lengths.quantile, _QUANTILES)
    return f"mean {lengths.mean:,.1f}, median {median:,}, 98% from {least:,} to {most:,}"


def _bars(lengths: Lengths) -> Iterator[str]:
    edges, shares = lengths.bins()
    step = -(-len(shares) // _BARS)
    starts = range(0, len(shares), step)
    sums = [float(shares[start : start + step].sum()) for start in starts]
    for start, share in zip(starts, sums):
        last = edges[min(start + step, len(shares))] - 1
        bar = "#" * round(_BAR * share / max(*sums, 1e-9))
        yield f"  {edges[start]:>9,} to {last:>9,} {share:>6.1%} {bar}".rstrip()

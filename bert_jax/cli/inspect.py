"""`bert-jax inspect`: what is in a store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from etils import epath

from bert_jax.cli import flags
from bert_jax.errors import UserError
from bert_jax.terminal import say

if TYPE_CHECKING:
    from bert_jax.api.inspect import Contents

_OUTPUTS = (".png", ".html")


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(
        prog="bert-jax inspect",
        description="Shows what is in stores, or in folders of pre-masked TFRecords: documents, "
        "lengths of documents, sentences and examples, frequent and unknown pieces, copies of "
        "documents, and some examples with pairs and masks as text.",
        formatter_class=flags.HelpFormatter,
        epilog="examples:\n"
        "  bert-jax inspect stores/sotu\n"
        "  bert-jax inspect stores/web stores/books --max-seq-length=512 --output=stores.html\n"
        "  bert-jax inspect stores/sotu --verify",
    )
    parser.add_argument("stores", nargs="+", metavar="STORE", help="folder of a store")
    parser.add_argument(
        "--max-seq-length",
        type=int,
        default=128,
        metavar="N",
        help="tokens of a row of examples (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="FILE",
        help="also write a picture (.png) or a self-contained page (.html); may be given again",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="only read all of the stores, and compare their checksums",
    )
    arguments = parser.parse_args(argv)
    for output in arguments.output:
        if epath.Path(output).suffix not in _OUTPUTS:
            parser.error(f"argument --output: {output} must end in {' or '.join(_OUTPUTS)}")
    for store in arguments.stores:
        if flags.is_missing(store):
            raise UserError(f"{store}: no token store there; make one with `bert-jax prepare`")
    if arguments.verify:
        for store in arguments.stores:
            _verify(epath.Path(store))
        return

    import jax

    # Little is computed here, so leave any accelerator free for others.
    jax.config.update("jax_platforms", "cpu")

    from bert_jax.api.inspect import inspect
    from bert_jax.report.stores import lines

    found = inspect(arguments.stores, max_seq_length=arguments.max_seq_length)
    for number, store in enumerate(found):
        for line in (*[""][: number > 0], *lines(store)):
            say(line)
    for output in arguments.output:
        _write(epath.Path(output), found)
        say(f"{output} is written.")


def _write(output: epath.Path, found: "Sequence[Contents]") -> None:
    import tempfile

    from bert_jax.report.stores import draw, write_page

    if output.suffix == ".png":
        draw(output, found)
        return
    with tempfile.TemporaryDirectory() as folder:
        picture = epath.Path(folder) / "stores.png"
        draw(picture, found)
        write_page(output, found, picture.read_bytes())


def _verify(path: epath.Path) -> None:
    from bert_jax.data.stores import open_store, verify

    damaged = []
    for name, problem in verify(path):
        say(f"{name}: {problem or 'whole'}")
        if problem:
            damaged.append(name)
    if damaged:
        raise UserError(
            f"{path}: {', '.join(damaged)} damaged; restore from a copy, or make the store again"
        )
    open_store(path)
    say(f"{path} is whole.")

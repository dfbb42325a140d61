"""Filters of documents: what each leaves out, in any number of processes."""

import json

import pytest
from extensions.cleaning import FewDigits

from bert_jax.cli import prepare
from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.filters import Filter, Filtering, describe, find_filters
from bert_jax.data.limits import FILTERS
from bert_jax.data.stores import open_store
from bert_jax.errors import UserError

pytestmark = pytest.mark.core


def filtered(texts, *names, workers=1):
    """What is left of the texts, and the counts of each filter: documents, characters."""
    filtering = Filtering(find_filters(names))
    left = list(filtering(texts, workers))
    assert list(filtering(texts, workers)) == left  # every reading begins anew
    return left, [(each["documents"], each["characters"]) for each in filtering.counts]


def test_exact_duplicates_and_length():
    texts = ["abc", "", "abc ", "abcdef", " ab", "abc", "\n", "abcdef", "Abc"]
    assert filtered(texts, "exact_duplicates") == (
        ["abc", "", "abcdef", " ab", "\n", "Abc"],
        [(3, 4 + 3 + 6)],
    )
    assert filtered(texts, "length:minimum=3,maximum=5")[0] == [
        text for text in texts if len(text.strip()) in (0, 3)
    ]
    assert filtered(texts, "length:minimum=3", "exact_duplicates") == (
        ["abc", "", "abcdef", "\n", "Abc"],
        [(1, 3), (3, 13)],
    )


def test_near_duplicates():
    pytest.importorskip("datasketch")
    words = [f"word{number}" for number in range(400)]
    original = " ".join(words)
    copy = " ".join([*words[:200], "changed", *words[201:]]).upper()  # 391 of 401 runs are shared
    half = " ".join([*words[:200], *(f"other{number}" for number in range(200))])
    short = "Too few words"
    texts = [original, half, copy, short, original, "too few, WORDS!", ""]
    left, counts = filtered(texts, "near_duplicates")
    assert left == [original, half, short, ""]
    assert counts == [(3, len(copy) + len(original) + len("too few, WORDS!"))]
    assert filtered(texts, "near_duplicates:threshold=0.2")[0] == [original, short, ""]
    assert filtered([short, "few words too"], "near_duplicates:words=1")[0] == [short]


def test_languages():
    pytest.importorskip("py3langid")
    english = "The quick brown fox jumps over the lazy dog, and then goes home to its family."
    german = "Der schnelle braune Fuchs springt über den faulen Hund und geht dann nach Hause."
    french = "Le renard brun saute par-dessus le chien paresseux, puis il rentre à la maison."
    texts = [english, german, french]
    assert filtered(texts, "language") == ([english], [(2, len(german) + len(french))])
    assert filtered(texts, "language:languages=fr+de")[0] == [german, french]
    with pytest.raises(UserError, match="unknown language 'klingon'; use af, am"):
        find_filters(["language:languages=en+klingon"])


def test_filters_of_ones_own():
    """A clean-up shortens texts; both kinds drop some."""
    texts = ["404 not found", "One.\nWe use cookies.\nTwo.", "Cookies!", "1 2 3 4", "Three 3"]
    names = ("extensions.cleaning:without_notices", "extensions.cleaning:FewDigits:share=0.5")
    left, counts = filtered(texts, *names)
    assert left == ["One.\nTwo.", "Three 3"]
    assert counts == [(2, 13 + 16 + 8), (1, 7)]
    assert find_filters([FewDigits(share=0.5)]) == find_filters([names[1]])
    assert [describe(each) for each in find_filters(names)] == list(names)


def test_filters_are_read_as_they_are_described():
    pytest.importorskip("datasketch")
    pytest.importorskip("py3langid")
    for name in FILTERS:
        (found,) = find_filters([name])
        assert find_filters([describe(found)]) == [found]
    assert tuple(Filter.kinds()) == FILTERS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenght", "--filter='lenght': use one of exact_duplicates, .*, or MODULE:CLASS"),
        ("length:least=3", "--filter=length: no option 'least'; there are: minimum, maximum"),
        ("length:minimum=few", "--filter=length.minimum must be int, not 'few'"),
        ("length:minimum=0", "--filter=length.minimum must be positive"),
        ("length:minimum=9,maximum=8", "--filter=length: maximum=8 is below minimum=9"),
        ("exact_duplicates:words=3", "no option 'words'; there are: none"),
        ("near_duplicates:threshold=1", r"threshold must be in \(0, 1\)"),
        ("no_such_module:clean", "--filter.*no_such_module"),
        ("json:__doc__", "--filter=json:__doc__: must be a function from a text to a text or None"),
        ("json:JSONDecoder", "must be a function .* or a class derived from"),
        ("json:dumps:indent=2", "must be a function"),
    ],
)
def test_names_that_are_no_filter(name, message):
    with pytest.raises(UserError, match=message):
        find_filters([name])


def test_a_function_must_return_text():
    with pytest.raises(UserError, match="must return a text or None, not int"):
        filtered(["a"], "builtins:len")


def run(*arguments):
    prepare.main([str(argument) for argument in arguments])


def test_stores_of_filtered_documents(tmp_path, capsys):
    """Equal with any number of workers, and to the store of what is left, but for its manifest."""
    texts = list(read_documents(find_sources(["corpus:sotu"])))[::12]
    kept = [text for text in texts if len(text.strip()) >= 20_000]
    assert 4 < len(kept) < len(texts)
    for name, lines in (("all", [*texts, *texts[::2]]), ("kept", kept)):
        records = "".join(json.dumps({"text": text}) + "\n" for text in lines)
        (tmp_path / f"{name}.jsonl").write_text(records)
    flags = ("--vocab-size", 500, "--heldout", 0.2)
    filters = ("--filter", "length:minimum=20000", "--filter", "exact_duplicates")
    dropped = [*texts, *texts[::2]]
    dropped = [text for text in dropped if len(text.strip()) < 20_000]
    copies = [text for text in texts[::2] if text in kept]
    run(tmp_path / "kept.jsonl", "--output", tmp_path / "kept", *flags, "--workers", 1)
    plain = open_store(tmp_path / "kept")
    assert "filtered" not in plain.manifest
    assert "filter" not in plain.manifest["options"]
    capsys.readouterr()
    for workers in (1, 2):
        output = tmp_path / f"store{workers}"
        run(tmp_path / "all.jsonl", "--output", output, *flags, *filters, "--workers", workers)
        store = open_store(output)
        assert store.fingerprint == plain.fingerprint
        assert store.manifest["filtered"] == [
            {
                "filter": "length:minimum=20000",
                "documents": len(dropped),
                "characters": sum(map(len, dropped)),
            },
            {
                "filter": "exact_duplicates",
                "documents": len(copies),
                "characters": sum(map(len, copies)),
            },
        ]
        summary = f"filter exact_duplicates: {len(copies):,} documents were left out, "
        assert summary in capsys.readouterr().out
    with pytest.raises(UserError, match=r"store2: a store of other --filter \(\['length"):
        run(tmp_path / "all.jsonl", "--output", tmp_path / "store2", *flags)

"""Sentence splitting, on hard cases and on the carried corpus."""

import pytest

from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.sentences import split_sentences

pytestmark = pytest.mark.core

# '|' marks where a sentence must end; nothing else may end one.
CASES = [
    "It rained.| We stayed.",
    "Mr. Adams met Dr. King.| Both spoke.",
    "The U.S. Government acted.| The U.N. Security Council did not.",
    "He lives in the U.S.| He likes it.",
    "See No. 5 and Vol. 3 of it.| Is that a no?| No.| Fine.",
    "We met at 9:02 p.m. Eastern time.| At 10 p.m.| We left.",
    "J. Q. Adams and George W. Bush were sons.| Both won.",
    "Rates rose 3.5 percent, e.g. Germany's, i.e. too much.| Nobody paid $1.50.| $2 was asked.",
    "Is it true?!| Yes!| No...| Perhaps.",
    "Wait. . . .| Then it came... slowly.",
    '"Stop!" she cried.| "Why?" he asked.| "Because."| They went.',
    "He said “No.”| She left.| (Applause.)| [Laughter] Thank you.",
    "Smith et al. 2019 and Fig. 2 show it.| Jones vs. Smith does not.",
    "Acme Inc. Chairman Lee and Acme Co. were sued.| It was Acme Inc.| The end.",
    "He holds a Ph.D. from M.I.T. and it shows.| I do.| You do.",
    "visit example.com today.| Version 2.0.1 is out.| In 1990.| Then 1991.",
    "1. Agriculture comes first.| 2. Trade follows.",
    "the end. and more, all lower case. still going",
    "First line| Second line",
    "我来了。|你看见了吗？|他说：“好！”|然后走了；|我们笑。",
    "「行こう。」|彼は言った。|そう！？|はい",
    "他喊“好！”，然后走了。|完",
    "यह पहला है।| यह दूसरा है।",
    "¿Qué pasa?| ¡Nada!| Él duerme.| Élan.",
    "We saw him--Mr. Adams--and _Mrs._ Adams.| Then--no.| A well-known dr. Smith came.| We left.",
]


@pytest.mark.parametrize("case", CASES)
def test_cases(case):
    expected = [sentence.strip() for sentence in case.split("|")]
    text = "\n".join(expected) if case.startswith("First line") else case.replace("|", "")
    assert split_sentences(text) == expected


def words(number: int) -> str:
    return " ".join(f"word{i % 7}" for i in range(number))


def test_text_without_capitals_has_the_same_sentences():
    text = "It rained. We stayed at home! Was it mr. Smith? He came at 9 p.m. with us. It dried."
    expected = split_sentences(f"{text} {text}")
    assert len(expected) == 10
    assert split_sentences(f"{text} {text}".lower()) == [each.lower() for each in expected]
    # A few capitals, as in names, do not matter; those of German and of ellipses do.
    names = "we saw Bob. he ran and I ran. we ran on... and on. that was that, I think, at last. "
    assert len(split_sentences(names * 3)) == 12
    german = (
        "Nach Art. 3 bzw. der Verordnung gem. den Regeln usw. ist Sache der Kommission, was hier. "
    )
    assert len(split_sentences(german * 3)) == 3


def test_text_without_marks_is_cut_between_words():
    text = words(500)
    segments = split_sentences(text)
    assert " ".join(segments) == text
    assert {len(segment.split()) for segment in segments[:-1]} == {5}
    commas = split_sentences(text.replace("word6", "word6,"))
    assert {segment[-6:] for segment in commas} >= {"word6,"}
    prose = f"A {words(5)}.\n" * 500
    for number, others, is_cut in ((41, "", False), (42, "", True), (416, prose, False)):
        sentences = split_sentences(others + words(number))
        assert (sentences[-1] != words(number)) == is_cut
    assert len(split_sentences(prose + text)) == 500 + len(segments)


def test_text_without_spaces_is_cut_between_ideographs():
    text = "天地玄黄宇宙洪荒" * 100
    assert split_sentences(text) == ["天地玄黄宇宙洪荒"] * 100
    assert split_sentences("天地玄黄，宇宙洪荒、" * 100) == ["天地玄黄，宇宙洪荒、"] * 100
    kana, latin = "ひらがなばかりの" * 50, "x" * 900
    assert split_sentences(kana + text) == [kana, *["天地玄黄宇宙洪荒"] * 100]
    assert split_sentences(f"{latin} {kana}") == [latin, kana], "words stay whole"


def test_blank_text_has_no_sentence():
    assert split_sentences(" \n\t\n") == []


def test_carried_corpus():
    text = "\n".join(read_documents(find_sources(["corpus:sotu"])))
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split()), "no character is lost"
    assert 70_000 < len(sentences) < 80_000
    words = sorted(len(sentence.split()) for sentence in sentences)
    assert words[len(words) // 2] in range(18, 28)
    for title in ("Mr.", "Mrs.", "Messrs.", "Hon.", "Dr.", "St.", "Gen."):
        assert not [s for s in sentences if s.endswith(f" {title}")]


@pytest.mark.parametrize("unit", [".", ". ", '."', "a.", ".a b", "。", "! ", ".) ", "No. "])
def test_long_runs_of_marks(unit):
    text = unit * 200_000  # a quadratic scan would take hours
    assert "".join(split_sentences(text)).replace(" ", "") == text.replace(" ", "")

"""Rule-based sentence splitting, in linear time, without a model or a choice of language.

A sentence ends at `.`, `!`, `?` or `…` (with any closing quotes and brackets) if white space and
then anything but a lower-case letter follows, and at the full-width marks of Chinese and Japanese.
The hard case is a full stop that may belong to an abbreviation. When in doubt the text is not
split: a sentence that is somewhat too long does not harm pretraining.

Where these rules see no sentences, as in transcripts without capitals or without punctuation, a
document would be one sentence. Pretraining would cut most of it off, and there would be no next
sentence. So two more rules follow:

- In a document without capitals, sentences may begin with a small letter.
- Very long sentences are cut into segments of a few words; in a document without marks, shorter
  ones, too.
"""

import re

_CLOSING = r"\"'”’»)\]}"
_WIDE_CLOSING = "」』”’）】》〉〕"
# Both alternatives match wherever they start, so the scan never backtracks: linear time.
_BOUNDARY = re.compile(
    rf"(?P<mark>[.!?…।؟۔]+)[{_CLOSING}{_WIDE_CLOSING}]*(?P<space>\s*)"
    rf"|[。！？｡；]+[{_WIDE_CLOSING}{_CLOSING}]*\s*(?P<wide>)"
)
_WORD_BEFORE = re.compile(r"(?:[^\s\"'“”‘’«»()\[\]{}—–-]|(?<!-)-(?!-))*$")  # after a dash or --
_WORD_AFTER = re.compile(r"[^\w.!?…]*([^\W_]*)")
_LONGEST_WORD = 24  # characters of an abbreviation, and examined around a full stop

# A full stop after these never ends a sentence: a name or an explanation follows.
_NEVER = frozenset(
    """mr mrs ms messrs mme mlle dr drs prof rev revd fr hon gen brig lieut lt col maj capt cpt cmdr
    cdr adm sgt cpl pvt gov sen sens rep reps pres supt amb st ste mt ft e.g i.e eg ie viz vs cf al
    ca approx""".split()  # noqa: SIM905, a list of words reads best as words
)
# Nor after these if a number follows.
_BEFORE_NUMBER = frozenset(
    """no nos art arts sec secs vol vols ch chap p pp par fig figs stat eq ver op bk pt
    ex""".split()  # noqa: SIM905
)
# After these, after an initial (J. Smith) and after U.S., p.m., Ph.D. a full stop ends a sentence
# only if the next word is one of _STARTERS.
_SOMETIMES = frozenset(
    """jr sr esq inc co cos corp ltd bros etc dept univ assn ave blvd rd est jan feb mar apr jun jul
    aug sep sept oct nov dec mon tue wed thu fri sat sun""".split()  # noqa: SIM905
)
_ABBREVIATED_LETTERS = re.compile(r"[^\W\d]{1,3}(?:\.[^\W\d])+")
_STARTERS = frozenset(
    """a after all also although an and another any are as at because before both but by can did do
    does each even every few finally first for from had has have he her here his how however i if in
    is it its last let many meanwhile more moreover most my never nevertheless no nor not nothing
    now of on once one only other our over perhaps please several she should since so some still
    such than thank that the their then there therefore these they this those though through thus to
    today together tonight two under unless until we were what when where whether which while who
    whose why will with would yes yet you your""".split()  # noqa: SIM905
)


_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff"
_WIDE = re.compile(rf"[\u3040-\u30ff{_IDEOGRAPHS}]")
# Lengths in characters. A wide one counts as four: it is a token, and so are about four letters.
_LONG_MEAN = 100  # of a document's sentences: are there more that begin with a small letter?
_LONGEST_MEAN = 500  # in prose, old statutes included, it is below 350
_LONGEST = 2500  # of a sentence in prose
_LONGEST_UNMARKED = 250  # of a sentence where marks are missing: half of a short row
# About six words, as between pauses of speech, so that few tokens are lost where a row ends. A
# segment ends at its last punctuation, else at its last space, or it is a longer word. Ideographs
# are words of their own.
_SEGMENT = re.compile(
    r"\S.{14,30}[,;:)…—–](?=\s)"
    rf"|(?=[{_IDEOGRAPHS}])(?:\S{{3,10}}[，、：]|\S{{1,8}}(?=[{_IDEOGRAPHS}\s]|$))"
    r"|\S.{0,31}(?!\S)"
    rf"|\S+?(?=[{_IDEOGRAPHS}\s]|$)"
)


def split_sentences(text: str) -> list[str]:
    """Sentences of `text` in order, stripped, none empty. A line break always ends a sentence.

    What is too long for a sentence is cut into segments. Only white space is dropped.
    """
    sentences = _split(text)
    length = _length(text)
    if length > _LONG_MEAN * len(sentences) and _num_capitals(text) < _num_marks(text):
        uncapitalised = _split(text, capitalised=False)
        if len(uncapitalised) > 2 * len(sentences):
            sentences = uncapitalised
    is_unmarked = length > _LONGEST_MEAN * len(sentences) or not _BOUNDARY.search(text)
    longest = _LONGEST_UNMARKED if is_unmarked else _LONGEST
    return [
        part
        for sentence in sentences
        for part in (_SEGMENT.findall(sentence) if _is_longer(sentence, longest) else [sentence])
    ]


def _split(text: str, *, capitalised: bool = True) -> list[str]:
    """Sentences; if not `capitalised`, they may begin with a small letter."""
    sentences = []
    for line in text.splitlines():
        start = 0
        for boundary in _BOUNDARY.finditer(line):
            if _ends_sentence(line, start, boundary, capitalised):
                sentences.append(line[start : boundary.end()].strip())
                start = boundary.end()
        if rest := line[start:].strip():
            sentences.append(rest)
    return sentences


def _length(text: str) -> int:
    return len(text) + 3 * len(_WIDE.findall(text))


def _is_longer(sentence: str, limit: int) -> bool:
    return 4 * len(sentence) > limit and _length(sentence) > limit


def _num_capitals(text: str) -> int:
    return sum(map(str.isupper, text))


def _num_marks(text: str) -> int:
    return sum(map(text.count, ".!?"))


def _ends_sentence(line: str, start: int, boundary: re.Match[str], capitalised: bool) -> bool:
    next_character = line[boundary.end() : boundary.end() + 1]
    if boundary["wide"] is not None:
        return next_character not in "，、：；,;:"  # “好！”， continues the sentence
    if not boundary["space"]:
        return False  # 3.5, example.com
    match = _WORD_AFTER.match(line, boundary.end(), boundary.end() + 2 * _LONGEST_WORD)
    assert match is not None  # both patterns match anywhere, if only an empty string
    following, mark = match[1], boundary["mark"]
    if not following:
        return False
    if following[0].islower() and (capitalised or "…" in mark or ".." in mark):
        return False
    if mark != ".":
        return True
    before = line[max(start, boundary.start() - _LONGEST_WORD) : boundary.start()]
    last = _WORD_BEFORE.search(before)
    assert last is not None
    word = last[0].lower()
    if word.isdigit() and before.strip(" \t([") == word:
        return False  # "1. Agriculture" begins a list item
    if word in _NEVER or (word in _BEFORE_NUMBER and following[0].isdigit()):
        return False
    if word in _SOMETIMES or _ABBREVIATED_LETTERS.fullmatch(word) or _is_initial(word):
        return following[0].isupper() and following.lower() in _STARTERS
    return True


def _is_initial(word: str) -> bool:
    return len(word) == 1 and word.isalpha() and word.isascii() and word != "i"

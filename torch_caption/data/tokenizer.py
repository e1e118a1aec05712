"""Captions into tokens: what the vocabulary is built of, what a model is trained on, and what scores compare.

`TOKENIZERS` has the three ways, by the names that `prepare --tokenizer` takes and that a data directory's manifest
keeps: training, evaluation and rewards use the one that the data was prepared with.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import regex

_SAME = str.maketrans({"’": "'", "‘": "'", "`": "'"})  # noqa: RUF001 - the typographic marks are meant

# As in UAX 29: marks belong to the letter before them, and so do the joiners that choose a letter's form, between
# letters or after a virama; other characters that nobody sees are in no word. A Hebrew geresh is part of its letter.
_MARK = r"[\p{Mn}\p{Mc}\u05F3]"
_JOINER = r"[\u200C\u200D](?=[\p{L}\p{M}])|(?<=\p{ccc=Virama})\u200D"
_WORD = rf"[\p{{L}}\p{{N}}_](?:[\p{{L}}\p{{N}}_]++|{_MARK}|{_JOINER})*+"
_START, _END = r"(?<![\p{L}\p{N}_][\p{Mn}\p{Mc}]*)", r"(?![\p{L}\p{N}\p{Mn}\p{Mc}_])"  # of a word
_DOT_OF_I = regex.compile(r"(?<=i)\u0307+")  # what is left of the Turkish capital i in lower case
_UNSEEN = regex.compile(r"[\p{Default_Ignorable_Code_Point}--[\u200B-\u200D]]", regex.V1)
_CLITIC = regex.compile(rf"n't{_END}|'(?:s|m|d|re|ve|ll){_END}")
_TWO_WORDS = regex.compile(
    rf"{_START}(?:can(?=not{_END})|(?:gon|wan)(?=na{_END})|got(?=ta{_END})|(?:lem|gim)(?=me{_END}))"
)
_TOKEN = regex.compile(
    rf"""
    <[a-z]+>                                        # <unk>
  | {_START} (?: (?:[\p{{L}}\p{{Nl}}\p{{No}}]{_MARK}*\.){{2,}} | (?:mr|mrs|ms|dr|st|jr|sr|vs)\. )   # u.s., p.m., mr.
  | n't{_END} | '(?:s|m|d|re|ve|ll){_END}
  | (?:{_START}\.(?=\d))? {_WORD}
    (?: [-/&.@]{_WORD} | '(?!\d){_WORD} | (?<=\d)[,:](?=\d){_WORD}        # t-shirt, at&t, o'clock, 1,000
      | [·‧]{_WORD} | (?<=\p{{Hebrew}}\p{{Mn}}*)["״](?=\p{{Hebrew}}){_WORD} )*   # Catalan, Hebrew abbreviations
  | [\#$%&@*+=~]
    """,
    regex.VERBOSE,
)
_UNSPACED = r"\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{lb=SA}"  # SA: Thai, Lao, Khmer, Myanmar and relatives
_CHARACTER = regex.compile(
    rf"[[{_UNSPACED}]&&[\p{{L}}\p{{N}}]](?:[\p{{GCB=SpacingMark}}]|{_MARK}|{_JOINER})*", regex.V1
)
_BLANK_BETWEEN = regex.compile(rf"(?<=[{_UNSPACED}\p{{ea=F}}]) (?=[{_UNSPACED}\p{{ea=F}}])")  # F: full-width forms
_LETTER = regex.compile(r"[\p{L}\p{N}]")
_BLANKS = regex.compile(r"[\s\x1C-\x1F\x80-\x9F]+")  # the controls because no word of a vocabulary has them


def tokenize(text: str) -> list[str]:
    """The words of a caption in lower case and NFC, without punctuation; of English as COCO's tokeniser has them.

    As there: hyphens, slashes and full stops inside a word stay (t-shirt, black/white, u.s.), "'s" and "n't" are tokens
    of their own (man 's, does n't), so are # $ % & @ * + = ~ and words in angle brackets (<unk>), and two words written
    as one are parted (can not, gon na). Tokens joined by blanks give the same tokens again.

    Other than there: brackets go (it leaves "-lrb-"), so do repeated marks ("!!!"), backslashes, other symbols and the
    apostrophe before a year or around an n ("'90s", "rock 'n' roll"); of its abbreviations only mr. mrs. ms. dr. st.
    jr. sr. vs. and letters with full stops (p.m.) keep their stop; "y'all" and "'tis" are one word. Of Flickr8k's
    35,000 captions 12 come out otherwise, 6 of them for their brackets.

    Of other scripts a word is what stands between blanks and punctuation, with its combining marks (Unicode's UAX 29).
    Scripts without blanks, such as Chinese and Thai, have no such words: `characters` is for them.
    """
    text = _normalized(text).translate(_SAME).lower()
    if not text.isascii():
        text = _normalized(_DOT_OF_I.sub("", _UNSEEN.sub("", text)))
    text = _CLITIC.sub(r" \g<0>", text)
    text = _TWO_WORDS.sub(r"\g<0> ", text)
    return _TOKEN.findall(text)


def characters(text: str) -> list[str]:
    """As `tokenize`, but each character of a script without blanks is a token, with its marks; other words stay whole.

    Those scripts are Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar and what Unicode's line breaking treats like
    them (UAX 14, class SA).
    """
    return tokenize(_CHARACTER.sub(r" \g<0> ", _normalized(text)))


def whitespace(text: str) -> list[str]:
    """What stands between blanks, as it is written but in NFC: for captions that another program has parted."""
    return [token for token in _BLANKS.split(_normalized(text)) if token]


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "words": tokenize,
    "characters": characters,
    "whitespace": whitespace,
}


def is_unspaced(text: str) -> bool:
    """Whether most of the letters are of scripts without blanks."""
    return not text.isascii() and 2 * len(_CHARACTER.findall(text)) > len(_LETTER.findall(text))


def readable(tokens: str) -> str:
    """Tokens joined by blanks, as a reader expects them: without the blanks inside of scripts that have none."""
    return _BLANK_BETWEEN.sub("", tokens)


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFC", text)

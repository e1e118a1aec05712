"""Captions into tokens, for the vocabulary, training and scores.

`TOKENIZERS` has the tokenizers by their names in `prepare --tokenizer` and in the manifest of a data directory:
training, evaluation and rewards use the one of the data.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import regex

_SAME = str.maketrans({"’": "'", "‘": "'", "`": "'"})  # noqa: RUF001 - the typographic marks are meant

# As in UAX 29: marks belong to the letter before them, and so do joiners that select a letter's form, between
# letters or after a virama; other invisible characters are not part of a word. A Hebrew geresh is part of its letter.
_MARK = r"[\p{Mn}\p{Mc}\u05F3]"
_JOINER = r"[\u200C\u200D](?=[\p{L}\p{M}])|(?<=\p{ccc=Virama})\u200D"
_WORD = rf"[\p{{L}}\p{{N}}_](?:[\p{{L}}\p{{N}}_]++|{_MARK}|{_JOINER})*+"
_START, _END = r"(?<![\p{L}\p{N}_][\p{Mn}\p{Mc}]*)", r"(?![\p{L}\p{N}\p{Mn}\p{Mc}_])"  # of a word
_DOT_OF_I = regex.compile(r"(?<=i)\u0307+")  # part of the Turkish capital i in lower case
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
_BLANKS = regex.compile(r"[\s\x1C-\x1F\x80-\x9F]+")  # the controls, which words of a vocabulary must not have


def tokenize(text: str) -> list[str]:
    """The words of a caption in lower case and NFC, without punctuation; in English as in COCO's tokenizer.

    As there: hyphens, slashes and full stops inside a word stay (t-shirt, black/white, u.s.), "'s" and "n't" are tokens
    of their own (man 's, does n't), so are # $ % & @ * + = ~ and words in angle brackets (<unk>), and contractions are
    split (can not, gon na). Tokens joined by blanks give the same tokens again.

    Differences: brackets are removed (COCO's gives "-lrb-"), and so are repeated marks ("!!!"), backslashes, other
    symbols and the apostrophe before a year or around an n ("'90s", "rock 'n' roll"); of the abbreviations only mr.
    mrs. ms. dr. st. jr. sr. vs. and letters with full stops (p.m.) keep their stop; "y'all" and "'tis" are one word.
    12 of Flickr8k's 35,000 captions differ, 6 of them because of brackets.

    In other scripts a word is a sequence of letters with combining marks between blanks and punctuation (UAX 29).
    Scripts without blanks, such as Chinese and Thai, need `characters`.
    """
    text = _normalized(text).translate(_SAME).lower()
    if not text.isascii():
        text = _normalized(_DOT_OF_I.sub("", _UNSEEN.sub("", text)))
    text = _CLITIC.sub(r" \g<0>", text)
    text = _TWO_WORDS.sub(r"\g<0> ", text)
    return _TOKEN.findall(text)


def characters(text: str) -> list[str]:
    """As `tokenize`, but each character of a script without blanks is a token, with its marks; other words are kept.

    These scripts are Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar and others of class SA in Unicode's line
    breaking (UAX 14).
    """
    return tokenize(_CHARACTER.sub(r" \g<0> ", _normalized(text)))


def whitespace(text: str) -> list[str]:
    """The text between blanks, unchanged except for NFC: for captions that another program has split."""
    return [token for token in _BLANKS.split(_normalized(text)) if token]


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "words": tokenize,
    "characters": characters,
    "whitespace": whitespace,
}


def is_unspaced(text: str) -> bool:
    """Whether most letters belong to scripts without blanks."""
    return not text.isascii() and 2 * len(_CHARACTER.findall(text)) > len(_LETTER.findall(text))


def readable(tokens: str) -> str:
    """Tokens joined by blanks, without the blanks inside scripts that have none."""
    return _BLANK_BETWEEN.sub("", tokens)


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFC", text)

"""Words and their integer ids, in cs231n's `coco2014_vocab.json` layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch_caption.errors import DataError
from torch_caption.io.text import invalid_character, read_json, shown

NULL = "<NULL>"
START = "<START>"
END = "<END>"
UNK = "<UNK>"
SPECIAL = (NULL, START, END, UNK)
_NO_WORD = re.compile(r"^$|[\s\x80-\x9f]")  # a blank separates words; terminals interpret some of the others


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a captioner; a word's id is its index in `words`.

    Args:
        words: all words, each once, including the special words <NULL>, <START>, <END> and <UNK>.

    Raises:
        DataError: a word occurs twice or is not text, or a special word is missing.
    """

    words: tuple[str, ...]
    word_to_idx: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        word_to_idx: dict[str, int] = {}
        for idx, word in enumerate(self.words):
            if not isinstance(word, str):
                raise DataError(f"the word of id {idx} is {shown(word)}, not a string")
            if invalid_character(word) or _NO_WORD.search(word):
                raise DataError(f"the word of id {idx} is {shown(word)}; use text without blanks or controls")
            if word in word_to_idx:
                raise DataError(f"the word {shown(word)} has two ids, {word_to_idx[word]} and {idx}")
            word_to_idx[word] = idx
        missing = [word for word in SPECIAL if word not in word_to_idx]
        if missing:
            raise DataError(f"the vocabulary lacks {', '.join(missing)}")
        object.__setattr__(self, "word_to_idx", word_to_idx)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """<START>, the tokens' ids, <END>; a token outside the vocabulary, or equal to a special word, is <UNK>."""
        unknown = self.word_to_idx[UNK]
        ids = (unknown if token in SPECIAL else self.word_to_idx.get(token, unknown) for token in tokens)
        return [self.word_to_idx[START], *ids, self.word_to_idx[END]]

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to the first <END>, joined by blanks, without <NULL> and <START>.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        tokens = []
        for column, idx in enumerate(ids):
            if not 0 <= idx < len(self.words):
                raise ValueError(f"id {int(idx)} at {column} is not in the vocabulary of {len(self.words)} words")
            word = self.words[int(idx)]
            if word == END:
                break
            if word not in (NULL, START):
                tokens.append(word)
        return " ".join(tokens)

    @classmethod
    def build(cls, captions: Iterable[Sequence[str]], min_count: int = 1) -> Vocabulary:
        """The special words, then every token that occurs at least `min_count` times, most frequent first."""
        counts: dict[str, int] = {}
        for tokens in captions:
            for token in tokens:
                counts[token] = counts.get(token, 0) + 1
        kept = sorted(
            (w for w, n in counts.items() if n >= min_count and w not in SPECIAL), key=lambda w: (-counts[w], w)
        )
        return cls((*SPECIAL, *kept))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read `coco2014_vocab.json`: `{"idx_to_word": [word, ...], "word_to_idx": {word: id, ...}}`.

        Raises:
            InputError: the file is missing or invalid, or its two parts disagree; the message names file and entry.
        """
        path = Path(path)
        content = read_json(path)
        if not isinstance(content, Mapping) or not isinstance(content.get("idx_to_word"), list):
            raise DataError(f"{path}: no list named idx_to_word")
        words = content["idx_to_word"]
        try:
            vocabulary = cls(tuple(words))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        vocabulary._check_agrees(path, content.get("word_to_idx"))
        return vocabulary

    def _check_agrees(self, path: Path, word_to_idx: object) -> None:
        if not isinstance(word_to_idx, Mapping):
            raise DataError(f"{path}: no object named word_to_idx")
        for word, idx in self.word_to_idx.items():
            other = word_to_idx.get(word)
            if type(other) is not int or other != idx:  # 1.0 and true are equal to 1
                raise DataError(
                    f"{path}: idx_to_word[{idx}] is {shown(word)}, but word_to_idx[{shown(word)}] is {shown(other)}"
                )
        extra = next((word for word in word_to_idx if word not in self.word_to_idx), None)
        if extra is not None:
            raise DataError(
                f"{path}: word_to_idx[{shown(extra)}] is {shown(word_to_idx[extra])}, "
                f"but idx_to_word lacks {shown(extra)}"
            )

    def save(self, path: str | Path) -> None:
        """Write a file for `load`."""
        content = {"idx_to_word": list(self.words), "word_to_idx": self.word_to_idx}
        Path(path).write_text(json.dumps(content), encoding="utf-8", newline="\n")

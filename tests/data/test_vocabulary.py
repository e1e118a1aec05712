"""Words and ids, there and back, and vocabulary files that cannot be used."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from torch_caption.data.vocabulary import SPECIAL, Vocabulary

WORDS = (*SPECIAL, "a", "dog", "runs")


def test_encode_and_decode():
    vocabulary = Vocabulary(WORDS)
    ids = vocabulary.encode(["a", "dog", "flies"])
    assert ids == [1, 4, 5, 3, 2]
    assert vocabulary.decode(ids) == "a dog <UNK>"
    assert len(vocabulary) == 7


def test_special_words_in_a_text_are_encoded_as_unknown():
    vocabulary = Vocabulary(WORDS)
    assert vocabulary.encode(["<END>", "dog", "<NULL>", "<START>", "<UNK>"]) == [1, 3, 5, 3, 3, 3, 2]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_decode_stops_at_the_end(kind):
    vocabulary = Vocabulary(WORDS)
    assert vocabulary.decode(kind([1, 4, 0, 5, 2, 6, 2])) == "a dog"
    assert vocabulary.decode(kind([4, 5, 6])) == "a dog runs"
    assert vocabulary.decode(kind([2, 4])) == ""


@pytest.mark.parametrize("idx", [-1, 7])
def test_decode_refuses_other_ids(idx):
    with pytest.raises(ValueError, match=f"id {idx} at 2 .* 7 words"):
        Vocabulary(WORDS).decode([1, 4, idx, 2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*WORDS, "dog"), r"'dog' has two ids, 5 and 7"),
        (WORDS[1:], "lacks <NULL>"),
        (("a",), "lacks <NULL>, <START>, <END>, <UNK>"),
        ((*WORDS, 7), "the word of id 7 is 7, not a string"),
    ],
)
def test_a_vocabulary_refuses_invalid_words(words, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


def test_build():
    captions = [["a", "dog", "runs"], ["a", "dog"], ["the", "dog", "<END>", "<END>"]]
    assert Vocabulary.build(captions).words == (*SPECIAL, "dog", "a", "runs", "the")
    assert Vocabulary.build(captions, min_count=2).words == (*SPECIAL, "dog", "a")
    assert Vocabulary.build([]).words == SPECIAL


def test_save_and_load(tmp_path):
    vocabulary = Vocabulary((*WORDS, "café", "日本"))
    path = tmp_path / "vocab.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert Vocabulary.load(str(path)).word_to_idx["café"] == 7


def _content(**changes: object) -> bytes:
    content: dict[str, object] = {"idx_to_word": WORDS, "word_to_idx": {w: i for i, w in enumerate(WORDS)}}
    return json.dumps({**content, **changes}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "no list named idx_to_word"),
        (_content(idx_to_word={}), "no list named idx_to_word"),
        (_content(word_to_idx=[]), "no object named word_to_idx"),
        (_content(idx_to_word=[*WORDS, "dog"]), "'dog' has two ids"),
        (_content(idx_to_word=[*WORDS, "\ud800"]), r"id 7 is '\\ud800'; use text without blanks"),
        (_content(idx_to_word=[*WORDS, "two words"]), "id 7 is 'two words'; use text without blanks"),
        (_content(idx_to_word=[*WORDS, ""]), "id 7 is ''; use text without blanks"),
        (_content(idx_to_word=[*WORDS, "a\x1b[2J"]), r"id 7 is 'a\\x1b\[2J'"),
        (_content(word_to_idx={w: float(i) for i, w in enumerate(WORDS)}), r"word_to_idx\['<NULL>'\] is 0.0"),
        (_content(word_to_idx={w: i if i != 1 else True for i, w in enumerate(WORDS)}), "is True"),
        (_content(idx_to_word=[*WORDS, "cat"]), r"idx_to_word\[7\] is 'cat', but word_to_idx\['cat'\] is None"),
        (_content(word_to_idx={**{w: i for i, w in enumerate(WORDS)}, "cat": 9}), "idx_to_word lacks 'cat'"),
    ],
)
def test_load_refuses_a_file_that_is_not_a_vocabulary(tmp_path, content, message):
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Vocabulary.load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.realdata
@pytest.mark.parametrize(("folder", "size"), [("cs231n", 1004), ("flickr8k_cs231n", 2541)])
def test_vocabularies_of_cs231n_and_flickr8k_load(shared_data, folder, size):
    vocabulary = Vocabulary.load(shared_data / folder / "coco2014_vocab.json")
    assert len(vocabulary) == size
    assert vocabulary.words[:4] == SPECIAL
    ids = list(range(3, size))
    assert vocabulary.encode(vocabulary.decode(ids).split(" ")) == [1, *ids, 2]

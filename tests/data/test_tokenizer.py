"""Tokens of many scripts; `tests/metrics/test_scores.py` has those of English."""

# ruff: noqa: RUF001 - letters of other scripts that look like ours are meant

from __future__ import annotations

import hashlib
import json
import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from torch_caption.data.tokenizer import TOKENIZERS, characters, is_unspaced, readable, tokenize, whitespace

SENTENCES = {  # and their words, separated by blanks
    "Hindi": ("एक कुत्ता घास पर दौड़ रहा है।", "एक कुत्ता घास पर दौड़ रहा है"),
    "Tamil": ("ஒரு நாய் புல்லில் ஓடுகிறது.", "ஒரு நாய் புல்லில் ஓடுகிறது"),
    "Sinhala with a joiner": ("ශ්\u200dරී ලංකාව", "ශ්\u200dරී ලංකාව"),
    "Malayalam with a joiner at the end": ("അവന്\u200d, നായ", "അവന്\u200d നായ"),
    "Thai with blanks": ("สุนัข วิ่ง บน หญ้า", "สุนัข วิ่ง บน หญ้า"),
    "pointed Arabic": ("كَلْبٌ يَجْرِي، عَلَى الْعُشْبِ؟", "كَلْبٌ يَجْرِي عَلَى الْعُشْبِ"),
    "Persian with a non-joiner": ("سگ می\u200cدود.", "سگ می\u200cدود"),
    "pointed Hebrew": ("כֶּלֶב רָץ עַל הַדֶּשֶׁא.", "כֶּלֶב רָץ עַל הַדֶּשֶׁא"),
    "Hebrew abbreviations": ('צה"ל, צה״ל, ג׳ירפה, "כלב"', 'צה"ל צה״ל ג׳ירפה כלב'),
    "Turkish": ("İki köpek ÇİMDE koşuyor.", "iki köpek çimde koşuyor"),
    "Vietnamese": ("Một con chó chạy trên cỏ.", "một con chó chạy trên cỏ"),
    "Russian": ("Собака бежит по траве; ёж спит.", "собака бежит по траве ёж спит"),
    "Greek": ("Ο ΣΚΥΛΟΣ τρέχει.", "ο σκυλος τρέχει"),
    "French": ("L'été, un chien court.", "l'été un chien court"),
    "Catalan": ("Una col·lecció de gossos", "una col·lecció de gossos"),
}
KHMER, LAO, BURMESE = "ឆ្កែរត់លើស្មៅ", "ໝາແລ່ນເທິງຫຍ້າ", "ခွေးပြေးနေသည်"


@pytest.mark.parametrize("language", SENTENCES)
def test_words_keep_their_marks(language):
    text, words = SENTENCES[language]
    assert tokenize(text) == unicodedata.normalize("NFC", words).split()


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("split", [*TOKENIZERS.values()])
def test_the_composed_and_the_decomposed_form_are_one(language, split):
    text = SENTENCES[language][0]
    assert split(unicodedata.normalize("NFD", text)) == split(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize("language", [name for name in SENTENCES if name != "Thai with blanks"])
def test_words_are_those_of_unicodes_word_boundaries(language):
    """Of texts without what English adds to them; the library's own boundaries, its WORD flag."""
    words = " ".join(tokenize(SENTENCES[language][0]))
    parts = regex.split(r"\b", words, flags=regex.WORD | regex.V1)
    assert [part for part in parts if part.strip()] == words.split()


def test_the_turkish_capital_i():
    assert tokenize("İki I\u0307ki iki") == ["iki"] * 3
    assert tokenize("IŞIK ışık") == ["işik", "ışık"]  # the language is unknown


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("👨\u200d👩\u200d👧 a family ❤\ufe0f", "a family"),
        ("1\ufe0f\u20e3 dog🏽 👍🏾", "1 dog"),
        ("\u0301 \u200d \u200c \ufe0f .\u0301", ""),
        ("a foot\u00adball\u200e on\ufeff grass\u2060", "a football on grass"),
        ("\u200cdog\u200d \u200dcat\u200c", "dog cat"),
        ("dog\u200bcat dog\u3000cat", "dog cat dog cat"),
        ("ﬁsh ½ 1/2 x² Ⅳ", "ﬁsh ½ 1/2 x² ⅳ"),
    ],
)
def test_emoji_and_format_characters_are_removed(text, tokens):
    assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("一只狗在草地上奔跑。", "一 只 狗 在 草 地 上 奔 跑"),
        ("3只Dogs穿T恤，在2018年", "3 只 dogs 穿 t 恤 在 2018 年"),
        ("犬がラーメンを食べる。", "犬 が ラ ー メ ン を 食 べ る"),
        ("か\u3099き", "が き"),
        ("สุนัขวิ่ง", "สุ นั ข วิ่ ง"),
        ("人々 狗-猫", "人 々 狗 猫"),
        ("A man's dog; एक कुत्ता", "a man 's dog एक कुत्ता"),
    ],
)
def test_characters_of_scripts_without_blanks_are_tokens(text, tokens):
    assert characters(text) == tokens.split()


@pytest.mark.parametrize("text", [KHMER, LAO, BURMESE])
def test_characters_have_their_marks(text):
    tokens = characters(text)
    assert len(tokens) > 4
    assert "".join(tokens) == text
    assert not any(unicodedata.category(token[0]).startswith("M") for token in tokens)


def test_whitespace_leaves_tokens_as_they_are():
    text = "草地 上 。\u3000The man's e\u0301t\u00e9\x85<UNK> can't\t!"
    assert whitespace(text) == ["草地", "上", "。", "The", "man's", "été", "<UNK>", "can't", "!"]


ALPHABET = "a'tn.-İIéi\u0301\u0307\u0345\u0323कि्\u200d\u200c狗が\u3099ทำ·\"׳א3½ \u00ad\ufe0f<unk>\x85"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.text() | st.text(alphabet=ALPHABET))
def test_tokenizing_joined_tokens_changes_nothing(name, text):
    split = TOKENIZERS[name]
    tokens = split(text)
    assert split(" ".join(tokens)) == tokens
    assert all(token.split() == [token] and unicodedata.is_normalized("NFC", token) for token in tokens)


def test_scripts_without_blanks_are_recognised_by_most_letters():
    without = ["一只 狗在草地上", "สุนัข วิ่ง", "犬がラーメンを食べる", KHMER, LAO, BURMESE, "T恤和裤子很长"]
    spaced = [
        "",
        "...",
        "12",
        "A dog 狗",
        *(text for text, _ in SENTENCES.values() if text != SENTENCES["Thai with blanks"][0]),
    ]
    assert all(map(is_unspaced, without))
    assert not any(map(is_unspaced, spaced))


@pytest.mark.parametrize("text", ["一只狗，在草地上。", "3 dogs 穿 T 恤", "สุนัขวิ่ง", "a dog's day", "강아지가 잔디 위를"])
def test_readable_text_has_no_blanks_in_scripts_without_blanks(text):
    tokens = " ".join(regex.findall(r"[\w']+|\S", text)) if "。" in text else " ".join(characters(text))
    expected = {"a dog's day": "a dog 's day", "3 dogs 穿 T 恤": "3 dogs 穿 t 恤"}
    assert readable(tokens) == expected.get(text, text)


@pytest.mark.exhaustive
@pytest.mark.realdata
def test_tokens_of_flickr8k_are_unchanged(shared_data):
    digest, count = hashlib.sha256(), 0
    for split in ("train", "val"):
        content = json.loads((shared_data / "flickr8k" / f"captions_{split}.json").read_text(encoding="utf-8"))
        for entry in content["annotations"]:
            tokens = tokenize(entry["caption"])
            count += len(tokens)
            digest.update((json.dumps(tokens, ensure_ascii=False) + "\n").encode("utf-8"))
    assert count == 378_162
    assert digest.hexdigest() == "cb9aabb7a32b901d53869b38cd8677507c00644072472a1fda8464173045fd47"

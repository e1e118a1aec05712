from __future__ import annotations

import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from tests.helpers.random_captions import random_captions
from torch_caption.data.tokenizer import tokenize
from torch_caption.errors import ConfigError, RunFailure
from torch_caption.metrics import java
from torch_caption.metrics.scores import score, score_each

ALL = ("BLEU", "ROUGE-L", "CIDEr")
CANDIDATES = {"mat": "the cat the cat", "dog": "a dog"}
REFERENCES = {"mat": ["the cat sat", "a cat is on the mat"], "dog": ["a dog"]}

# What Stanford's PTB tokenizer gives, punctuation dropped as COCO's evaluation drops it.
AS_PTB = {
    "A man's hat.": "a man 's hat",
    "The dogs' bowls, and a t-shirt.": "the dogs bowls and a t-shirt",
    "He doesn't and can't, won't; cannot; gonna, wanna go": "he does n't and ca n't wo n't can not gon na wan na go",
    "a black/white cat -- running": "a black/white cat running",
    'a sign that says "STOP"': "a sign that says stop",
    "it costs $5.50 or 10% off": "it costs $ 5.50 or 10 % off",
    "at 5:30 p.m. in the U.S. of America.": "at 5:30 p.m. in the u.s. of america",
    "Mr. Smith and St. John": "mr. smith and st. john",
    "1,000 people & 2 dogs": "1,000 people & 2 dogs",
    "#1 fan @ home": "# 1 fan @ home",
    "three... dogs…here": "three dogs here",
    "“smart quotes” and ‘single’ and it’s": "smart quotes and single and it 's",  # noqa: RUF001
    "café naïve": "café naïve",
    "a dog.A cat,a bird": "a dog.a cat a bird",
    "4x4 truck 3rd 1950s 1/2 pizza .5 miles": "4x4 truck 3rd 1950s 1/2 pizza .5 miles",
    "<UNK> dog <unk>": "<unk> dog <unk>",
    "they're I'm you've he'd she'll": "they 're i 'm you 've he 'd she 'll",
    "o'clock d'oh AT&T": "o'clock d'oh at&t",
    "a man – woman — both": "a man woman both",  # noqa: RUF001
    "canna gotna": "canna gotna",
    "hand -held device_s 5'10\" man": "hand held device_s 5 10 man",
}
OTHER_THAN_PTB = {
    "the U.S. of A.": "the u.s. of a",
    "a dog (brown)!!! [left]": "a dog brown left",
    "the '90s rock 'n' roll": "the 90s rock n roll",
    "y'all 'tis no.5": "y'all tis no.5",
}


@pytest.mark.parametrize(("text", "tokens"), [*AS_PTB.items(), *OTHER_THAN_PTB.items()])
def test_tokenize(text: str, tokens: str) -> None:
    assert tokenize(text) == tokens.split()


@pytest.mark.parametrize("text", ["", " ", ".", "... !?", "\n\t", "()"])
def test_no_words(text: str) -> None:
    assert tokenize(text) == []


def test_cider_by_hand() -> None:
    """Of two images, "a" is in a reference of both and weighs log(2/2) = 0, every other n-gram log(2/1) =: 1.

    dog: cosine 1 for words (dog, dog) and for pairs, nothing longer: 10 (1 + 1 + 0 + 0) / 4 = 5.
    mat, first reference: words (the 2, cat 2)(the, cat, sat 1), clipped to 1: (1 + 1) / (sqrt 8 sqrt 3); pairs
    (the cat 2, cat the 1)(the cat, cat sat 1): 1 / (sqrt 5 sqrt 2); 3 pairs against 2: exp(-1 / 72).
    mat, second: words (cat, is, on, the, mat 1): (1 + 1) / (sqrt 8 sqrt 5); no pair; 3 pairs against 5: exp(-4 / 72).
    """
    first = (2 / math.sqrt(24) + 1 / math.sqrt(10)) * math.exp(-1 / 72)
    second = 2 / math.sqrt(40) * math.exp(-4 / 72)
    mat = 10 * (first + second) / 4 / 2
    assert score(CANDIDATES, REFERENCES, ["CIDEr"]) == pytest.approx({"CIDEr": (mat + 5) / 2})


def test_scores_are_those_of_pycocoevalcap(capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    words = tokenize("a the man dog cat red blue small on under left of runs sits")

    def caption() -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, 12)))

    references = {image: [caption() for _ in range(draw.randint(1, 6))] for image in range(60)}
    candidates = {image: draw.choice([*references[image], caption()]) for image in references}
    scores = score(candidates, references, ALL)
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "")

    wrapped = {image: [candidate] for image, candidate in candidates.items()}
    expected = {f"BLEU-{n + 1}": value for n, value in enumerate(Bleu(4).compute_score(references, wrapped, 0)[0])}
    expected["ROUGE-L"] = Rouge().compute_score(references, wrapped)[0]
    expected["CIDEr"] = Cider().compute_score(references, wrapped)[0]
    assert scores == pytest.approx(expected, rel=1e-12)
    assert all(type(value) is float for value in scores.values())
    assert 0.1 < scores["BLEU-4"] < 0.9  # the captions are neither all right nor all wrong


def test_case_and_punctuation_do_not_count() -> None:
    plain = score(CANDIDATES, REFERENCES, ALL)
    loud = {image: f' "{caption.upper()}"! ' for image, caption in CANDIDATES.items()}
    assert score(loud, REFERENCES, ALL) == plain


def test_the_default_metrics_and_the_best_scores() -> None:
    references = {0: ["a small red cat sleeps here"], 1: ["two dogs run on the green grass"]}
    scores = score({image: captions[0] for image, captions in references.items()}, references)
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr"]
    assert scores == pytest.approx({"BLEU-1": 1, "BLEU-2": 1, "BLEU-3": 1, "BLEU-4": 1, "CIDEr": 10})


@pytest.mark.parametrize("empty", ["", "  ", "..."])
@pytest.mark.parametrize("reference", [["a cat sleeps"], ["a cat sleeps", ""]])
def test_an_empty_caption_scores_0(empty: str, reference: list[str]) -> None:
    assert set(score({0: empty}, {0: reference}, ALL).values()) == {0.0}
    among = score({0: empty, **CANDIDATES}, {0: reference, **REFERENCES}, ["ROUGE-L"])
    assert among["ROUGE-L"] == pytest.approx(score(CANDIDATES, REFERENCES, ["ROUGE-L"])["ROUGE-L"] * 2 / 3)


def test_cider_of_one_image_is_0() -> None:
    assert score({0: "a cat"}, {0: ["a cat"]}, ["CIDEr"]) == {"CIDEr": 0.0}


def test_images_without_a_candidate_have_no_effect() -> None:
    more = {**REFERENCES, "other": ["the cat sat on the dog"], "none": []}
    assert score(CANDIDATES, more, ALL) == score(CANDIDATES, REFERENCES, ALL)


@pytest.mark.parametrize(
    ("candidates", "references", "metrics", "message"),
    [
        ({}, REFERENCES, ALL, "there are no candidate captions to score"),
        ({7: "a cat"}, REFERENCES, ALL, "image 7 has a candidate caption, but no references"),
        ({7: "a cat"}, {7: []}, ALL, "image 7 has a candidate caption, but no references"),
        ({7: "a cat"}, {7: "a cat"}, ALL, "the references of image 7 are one string, 'a cat', not a list"),
        ({7: "a cat"}, {7: ["", "."]}, ALL, "no reference of image 7 has a word"),
        ({7: ["a cat"]}, {7: ["a cat"]}, ALL, "the candidate caption of image 7 is .* not a string"),
        ({7: "a cat"}, {7: ["a", None]}, ALL, "reference 1 of image 7 is None, not a string"),
        (
            CANDIDATES,
            REFERENCES,
            ["BLEU", "SPICE"],
            "unknown metric 'SPICE'; choose from BLEU, METEOR, ROUGE-L, CIDEr",
        ),
    ],
)
def test_errors_name_the_image(candidates: dict, references: dict, metrics: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(candidates, references, metrics)


def test_no_other_tokenizer() -> None:
    with pytest.raises(ValueError, match="unknown tokenizer 'PTB'; choose from words, characters, whitespace, ptb"):
        score(CANDIDATES, REFERENCES, tokenizer="PTB")


# Each image, and any choice of images --------------------------------------------------------------------------------


def corpus(seed: int = 1) -> tuple[dict[int, str], dict[int, list[str]]]:
    references, candidates = random_captions(seed, 40)
    joined = {image: [" ".join(caption) for caption in captions] for image, captions in references.items()}
    return {image: " ".join(candidates[image]) for image in references}, joined


def test_the_score_of_each_image() -> None:
    candidates, references = corpus()
    scores = score_each(candidates, references, ALL)
    assert scores.images == tuple(candidates)
    assert scores.overall == score(candidates, references, ALL)
    for name in ("ROUGE-L", "CIDEr"):
        assert scores.each[name].mean() == pytest.approx(scores.overall[name], rel=1e-12)
    for image in (0, 1, 17):
        alone = score({image: candidates[image]}, references, ["BLEU", "ROUGE-L"])
        assert {name: scores.each[name][image] for name in alone} == pytest.approx(alone, rel=1e-12, abs=1e-12)


def test_scores_of_a_choice_of_images() -> None:
    """BLEU of images named twice or not at all is BLEU of a corpus that has them twice or lacks them."""
    candidates, references = corpus()
    times = np.random.default_rng(0).integers(3, size=len(candidates))
    scores = score_each(candidates, references, ALL)
    copies = [(image, copy) for image in candidates for copy in range(times[image])]
    chosen = score(
        {pair: candidates[pair[0]] for pair in copies},
        {pair: references[pair[0]] for pair in copies},
        ["BLEU", "ROUGE-L"],
    )
    of = {name: float(value) for name, value in scores.of(times).items()}
    assert {name: of[name] for name in chosen} == pytest.approx(chosen, rel=1e-12)
    assert of["CIDEr"] == pytest.approx(np.repeat(scores.each["CIDEr"], times).mean(), rel=1e-12)
    between = score_each({0: "a red cat"}, {0: ["a cat", "a small red cat"]}, ["BLEU"])  # the shorter of two as near
    assert between.of(np.ones(1))["BLEU-1"] == pytest.approx(between.overall["BLEU-1"], rel=1e-12)
    many = scores.of(np.stack([times, np.ones_like(times)]))
    assert {name: values[0] for name, values in many.items()} == pytest.approx(of, rel=1e-12)
    assert {name: values[1] for name, values in many.items()} == pytest.approx(scores.overall, rel=1e-12)


def test_the_interval_is_that_of_the_mean() -> None:
    """Of a mean over N images it is the mean +- 1.96 standard errors, nearly, and narrower by 2 with 4 N images."""
    candidates, references = corpus()
    scores = score_each(candidates, references, ALL)
    intervals = scores.interval()
    each = scores.each["ROUGE-L"]
    error = 1.96 * each.std() / math.sqrt(len(each))
    assert intervals["ROUGE-L"].low == pytest.approx(each.mean() - error, abs=0.1 * error)
    assert intervals["ROUGE-L"].high == pytest.approx(each.mean() + error, abs=0.1 * error)
    assert intervals.keys() == scores.overall.keys()
    assert all(interval.low < scores.overall[name] < interval.high for name, interval in intervals.items())
    assert scores.interval(seed=0) == intervals != scores.interval(seed=1)


def test_two_models_are_compared_on_the_same_images() -> None:
    """The difference to itself is 0 in every draw; a caption made right everywhere is a sure gain."""
    candidates, references = corpus()
    scores = score_each(candidates, references, ALL)
    assert {(i.low, i.high) for i in scores.interval(scores).values()} == {(0.0, 0.0)}
    right = score_each({image: max(captions) for image, captions in references.items()}, references, ["BLEU", "CIDEr"])
    gains = right.interval(scores)
    assert "ROUGE-L" not in gains
    assert gains["CIDEr"].low > 0
    assert gains["BLEU-4"].low > 0
    with pytest.raises(ValueError, match="for the same images"):
        scores.interval(score_each({0: candidates[0]}, references))


# With Java -----------------------------------------------------------------------------------------------------------

needs_java = pytest.mark.skipif(not java.available(), reason="there is no Java")


@needs_java
def test_ptb_tokens() -> None:
    """Those of pycocoevalcap, and as the table above has them."""
    texts = [*AS_PTB, *OTHER_THAN_PTB]
    found = java.ptb_tokenize(texts)
    same = [[token.lower() for token in tokens] == tokenize(text) for text, tokens in zip(texts, found, strict=True)]
    assert same == [text in AS_PTB for text in texts]
    texts += ["", "  ", "1 1/2 cups", "a\nb", "a|||b <UNK>", "..."]
    theirs = PTBTokenizer().tokenize({row: [{"caption": text}] for row, text in enumerate(texts)})
    assert [" ".join(tokens) for tokens in java.ptb_tokenize(texts)] == [theirs[row][0] for row in range(len(texts))]
    assert java.ptb_tokenize(["a\u2028b\x85c\x1cd", "\ud800", "\N{SNOWMAN}"])[::2] == [
        ["a", "b", "c", "d"],
        ["\N{SNOWMAN}"],
    ]


@pytest.mark.exhaustive
@needs_java
def test_meteor_is_that_of_pycocoevalcap() -> None:
    """By each way of matching, with words that do not match, word for word, and without a word."""
    references = {
        0: ["a man is riding a horse", "the man rides on a brown horse"],
        1: ["two dogs run in the grass", "dogs running through grass"],
        2: ["a small boy is jumping into the water", "a kid leaps"],
        3: ["several people walk down the street"],
        4: ["the cat sat", "on the mat"],
        5: ["a red car", "an automobile"],
    }
    candidates = {0: "a man rides a horse", 1: "dogs run in grass", 2: "a small boy is jumping into the water"}
    candidates |= {3: "a number of persons walking along a road", 4: "", 5: "zebra"}
    scores = score_each(candidates, references, ["METEOR"])
    pycocoevalcap = Meteor()
    try:
        mean, each = pycocoevalcap.compute_score(references, {image: [text] for image, text in candidates.items()})
    finally:
        for pipe in (pycocoevalcap.meteor_p.stdin, pycocoevalcap.meteor_p.stdout, pycocoevalcap.meteor_p.stderr):
            pipe.close()
    assert scores.overall["METEOR"] == pytest.approx(mean, rel=1e-12)
    assert scores.each["METEOR"] == pytest.approx(each, rel=1e-12)
    assert each[2] == 1.0
    assert each[4] == each[5] == 0.0
    assert scores.of(np.ones(6))["METEOR"] == pytest.approx(mean, rel=1e-12)


@needs_java
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors as Linux shows them")
def test_java_leaves_nothing_behind() -> None:
    def left() -> tuple[int, set[str]]:
        """How many descriptors are open, and the children, dead or alive; other tests may have left some."""
        tasks = Path("/proc/self/task").iterdir()
        return len(os.listdir("/proc/self/fd")), {c for t in tasks for c in (t / "children").read_text().split()}

    java.ptb_tokenize(["a cat"])
    before = left()
    assert score(CANDIDATES, REFERENCES, ALL, tokenizer="ptb") == score(CANDIDATES, REFERENCES, ALL)
    assert left() == before


def test_without_java_the_error_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not java.available()
    for asked, what in (({"metrics": ["METEOR"]}, "METEOR"), ({"tokenizer": "ptb"}, "the PTB tokenizer")):
        with pytest.raises(ConfigError, match=f"{what} needs Java: .*; install a Java runtime, or leave it out"):
            score(CANDIDATES, REFERENCES, **asked)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Java is a shell script")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no room >&2; exit 3", "METEOR: java ended with status 3: no room"),
        ("cat >/dev/null; echo 1.0", "METEOR: java ended with status 0: 1 lines for 2"),
        ("cat >/dev/null; echo 1.0; echo 2.0", "METEOR returned '1.0', not its 23 counts"),
    ],
)
def test_java_failures_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str) -> None:
    (tmp_path / "java").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RunFailure, match=message):
        score(CANDIDATES, REFERENCES, ["METEOR"])

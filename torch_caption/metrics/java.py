"""The two programs in Java that come with pycocoevalcap: Stanford's PTB tokeniser and METEOR.

Each is one process that reads all its lines and ends: no process is left behind, no descriptor, no temporary file.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocoevalcap.meteor import meteor
from pycocoevalcap.tokenizer import ptbtokenizer as ptb

from torch_caption.errors import ConfigError, RunFailure

_UTF_8 = "-Dfile.encoding=UTF-8"  # Java before 18 takes the locale's


def available() -> bool:
    """Whether there is a Java that runs; a `java` that only says where to get one is none."""
    if shutil.which("java") is None:
        return False
    return subprocess.run(["java", "-version"], capture_output=True, check=False).returncode == 0


def ptb_tokenize(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of each caption by Stanford's PTB tokeniser, in lower case, without punctuation: COCO's own.

    Raises:
        ConfigError: there is no Java.
        RunFailure: it failed.
    """
    jar = Path(ptb.__file__).parent / ptb.STANFORD_CORENLP_3_4_1_JAR
    command = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = _run("the PTB tokeniser", [*command, "-encoding", "UTF-8"], [" ".join(text.split()) for text in captions])
    # Blanks alone part tokens: a fraction ("1 1/2") holds a space of another kind.
    return [[token for token in line.split(" ") if token and token not in ptb.PUNCTUATIONS] for line in lines]


def meteor_statistics(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What METEOR 1.5 counts of each candidate against the reference that it fits best; all are tokens and blanks.

    Returns:
        (N, 23) float64: words of candidate and reference, function words of both; for the matches by word, stem,
        synonym and paraphrase: content words of both, function words of both; chunks, matched words of both.

    Raises:
        ConfigError: there is no Java.
        RunFailure: it failed.
    """
    jar = Path(meteor.__file__).parent / meteor.METEOR_JAR
    lines = [
        " ||| ".join(["SCORE", *(caption.replace("|||", "") for caption in (*truths, candidate))])
        for candidate, truths in zip(candidates, references, strict=True)
    ]
    counts = _run("METEOR", ["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"], lines)
    try:
        return np.array([line.split() for line in counts], dtype=np.float64).reshape(len(lines), 23)
    except ValueError:
        raise RunFailure(f"METEOR answered {counts[0]!r}, not its 23 counts") from None


def _run(what: str, command: Sequence[str], lines: Sequence[str]) -> list[str]:
    """A line for each line."""
    try:
        done = subprocess.run(
            ["java", _UTF_8, *command],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ConfigError(
            f"{what} needs Java: {error.strerror}: java; install a Java runtime, or leave it out"
        ) from None
    answers = done.stdout.split("\n")[:-1]
    if done.returncode or len(answers) != len(lines):
        said = " ".join(done.stderr.split())[:300] or f"{len(answers)} lines for {len(lines)}"
        raise RunFailure(f"{what}: java ended with status {done.returncode}: {said}")
    return answers

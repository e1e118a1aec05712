"""The two Java programs of pycocoevalcap: Stanford's PTB tokenizer and METEOR.

Each is one process that reads all its lines and exits, without temporary files.
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

_UTF_8 = "-Dfile.encoding=UTF-8"  # Java before 18 uses the locale's


def available() -> bool:
    """Whether Java is installed and runs; a `java` stub is not enough."""
    if shutil.which("java") is None:
        return False
    return subprocess.run(["java", "-version"], capture_output=True, check=False).returncode == 0


def ptb_tokenize(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of each caption by Stanford's PTB tokenizer, in lower case, without punctuation: COCO's own.

    Raises:
        ConfigError: Java is not installed.
        RunFailure: it failed.
    """
    jar = Path(ptb.__file__).parent / ptb.STANFORD_CORENLP_3_4_1_JAR
    command = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = _run("the PTB tokenizer", [*command, "-encoding", "UTF-8"], [" ".join(text.split()) for text in captions])
    # Only blanks separate tokens: a fraction ("1 1/2") contains another kind of space.
    return [[token for token in line.split(" ") if token and token not in ptb.PUNCTUATIONS] for line in lines]


def meteor_statistics(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """The counts of METEOR 1.5 for each candidate and its best-matching reference; texts are tokens and blanks.

    Returns:
        (N, 23) float64: words of candidate and reference, function words of both; for the matches by word, stem,
        synonym and paraphrase: content words of both, function words of both; chunks, matched words of both.

    Raises:
        ConfigError: Java is not installed.
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
        raise RunFailure(f"METEOR returned {counts[0]!r}, not its 23 counts") from None


def _run(what: str, command: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Run a Java program that returns a line for each line."""
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
        output = " ".join(done.stderr.split())[:300] or f"{len(answers)} lines for {len(lines)}"
        raise RunFailure(f"{what}: java ended with status {done.returncode}: {output}")
    return answers

"""`torch-caption check`: processes with limits, the formats of a report, the exit status."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from torch_caption.__main__ import main
from torch_caption.verify.solution.process import checked

SOLUTION = Path(__file__).parent / "solutions" / "numpy_solution.py"
STEP = "import numpy as np\n\n\ndef rnn_step_forward(x, prev_h, Wx, Wh, b):\n"


def test_the_formats_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = tmp_path / "wrong.py"
    source = SOLUTION.read_text(encoding="utf-8").replace("np.sum(dtanh, axis=0)", "np.mean(dtanh, axis=0)")
    wrong.write_text(source, encoding="utf-8")
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "junit", "csv")}
    flags = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    with pytest.raises(SystemExit, match="1"):
        main(["check", str(SOLUTION), str(wrong), "--jobs", "2", *flags])
    out = capsys.readouterr().out
    assert "db is averaged over the batch" in out
    assert "derivation: db = sum_n da" in out
    correct, incorrect = json.loads(files["json"].read_text())
    assert correct["passed"]
    assert not incorrect["passed"]
    suites = ET.parse(files["junit"]).getroot()
    assert suites[0].get("failures") == "0"
    failed = {(case.get("classname"), case.get("name")) for case in suites[1] if case.find("failure") is not None}
    assert ("rnn_step", "db") in failed
    rows = list(csv.DictReader(files["csv"].read_text(encoding="utf-8").splitlines()))
    assert {row["status"] for row in rows if row["path"] == str(SOLUTION)} == {"ok"}
    assert [row["tensor"] for row in rows if row["function"] == "rnn_step" and row["status"] == "wrong"] == ["db"]


def test_another_shape_and_nan_are_valid_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """JSON has neither infinity nor NaN."""
    wrong = tmp_path / "wrong.py"
    source = SOLUTION.read_text(encoding="utf-8")
    source = source.replace("np.sum(dtanh, axis=0)", "dtanh").replace("np.dot(dtanh, Wx.T)", "np.nan * x")
    wrong.write_text(source, encoding="utf-8")
    with pytest.raises(SystemExit, match="1"):
        main(["check", str(wrong), "--json", str(tmp_path / "out.json")])
    assert "3x6, not 6" in capsys.readouterr().out

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    (report,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"), parse_constant=refuse)
    found = {(f["function"], f["tensor"]): f["absolute"] for f in report["findings"]}
    assert found["rnn_step", "db"] is None
    assert found["rnn_step", "dx"] is None


def test_a_correct_solution_has_status_0(capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(SOLUTION)]) == 0
    assert "wrong" not in capsys.readouterr().out


def test_a_solution_without_an_end_is_ended(tmp_path: Path):
    path = tmp_path / "endless.py"
    path.write_text(STEP + "    while True:\n        pass\n", encoding="utf-8")
    report = checked(path, 0, 8, 8)
    assert report["findings"][0]["diagnosis"] == ["It took more than 8 s."]


def test_a_solution_that_needs_too_much_memory(tmp_path: Path):
    path = tmp_path / "large.py"
    path.write_text(STEP + "    return np.ones((2**17, 2**17)), None\n", encoding="utf-8")
    report = checked(path, 0, 60, 8)
    (finding,) = report["findings"]
    assert finding["status"] == "raised"
    assert "MemoryError" in finding["diagnosis"][0]


def test_what_a_solution_prints_is_not_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "loud.py"
    path.write_text("print('loud')\n" + STEP + "    print('loud')\n    return None, None\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="1"):
        main(["check", str(path)])
    assert "loud\n" not in capsys.readouterr().out


def test_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(tmp_path / "no.py")]) == 2
    assert "no such file or folder" in capsys.readouterr().err

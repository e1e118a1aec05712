"""Reports on solutions as a table, JSON, JUnit's XML and CSV."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

Report = Mapping[str, Any]
"""As `check.Report.plain` makes it."""

COLUMNS = ("path", "function", "tensor", "status", "absolute", "relative", "shape", "diagnosis", "formula", "where")


def table(report: Report) -> str:
    """Lines for a terminal: a function whose tensors are all correct has one, a wrong tensor one of its own."""
    lines = [": ".join(filter(None, (report["path"], report["dialect"])))]
    for function, group in groupby(report["findings"], key=lambda finding: finding["function"]):
        findings = list(group)
        if all(finding["status"] == "ok" for finding in findings):
            lines.append(f"  {function:<28} ok       {', '.join(finding['tensor'] for finding in findings)}")
            continue
        lines.append(f"  {function}")
        correct = [finding["tensor"] for finding in findings if finding["status"] == "ok"]
        lines += [f"    {'ok':<8} {', '.join(correct)}"] if correct else []
        lines += [f"    {_line(finding)}".rstrip() for finding in findings if finding["status"] != "ok"]
        lines += [f"    {line}" for line in _diagnoses(findings)]
    return "\n".join(lines)


def _diagnoses(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each sentence once, with the tensors that it explains, and the line of the derivation."""
    tensors: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        for sentence in finding.get("diagnosis", ()):
            tensors.setdefault((sentence, finding.get("formula", "")), []).append(finding["tensor"])
    lines = []
    for (sentence, formula), names in tensors.items():
        lines.append(f"-> {', '.join(filter(None, names))}: {sentence}" if any(names) else f"-> {sentence}")
        lines += [f"   derivation: {formula}"] if formula else []
    return lines


def _line(finding: Mapping[str, Any]) -> str:
    status, tensor = finding["status"], finding["tensor"]
    if status == "wrong" and finding.get("case"):
        shape, expected = ("x".join(map(str, finding[key])) or "scalar" for key in ("shape", "expected_shape"))
        if shape != expected:
            errors = f"{shape}, not {expected}"
        elif finding["absolute"] is None:
            errors = f"not finite, {shape}"
        else:
            errors = f"max error {finding['absolute']:.1e}, relative {finding['relative']:.1e}, {shape}"
        return f"{'wrong':<8} {tensor:<17} {errors}, case: {finding['case']}"
    place = f"at {finding['where']}" if finding.get("where") else ""
    return f"{status:<8} {' '.join(filter(None, (tensor, place)))}"


def junit(reports: Sequence[Report]) -> str:
    """A test suite for each solution, a test case for each tensor."""
    suites = ET.Element("testsuites")
    for report in reports:
        findings = report["findings"]
        failed = sum(finding["status"] == "wrong" for finding in findings)
        errors = sum(finding["status"] in ("raised", "missing") for finding in findings)
        counts = {"tests": str(len(findings)), "failures": str(failed), "errors": str(errors)}
        suite = ET.SubElement(suites, "testsuite", {"name": report["path"], **counts})
        for finding in findings:
            name = finding["tensor"] or finding["function"]
            case = ET.SubElement(suite, "testcase", classname=finding["function"], name=name)
            if finding["status"] != "ok":
                kind = "failure" if finding["status"] == "wrong" else "error"
                ET.SubElement(case, kind, message=_line(finding)).text = "\n".join(finding.get("diagnosis", ()))
    return ET.tostring(suites, encoding="unicode", xml_declaration=True)


def comma_separated(reports: Sequence[Report]) -> str:
    """A row for each tensor of each solution."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for report in reports:
        for finding in report["findings"]:
            row = {"path": report["path"], **finding, "diagnosis": " ".join(finding.get("diagnosis", ()))}
            row["shape"] = "x".join(map(str, finding.get("shape", ())))
            writer.writerow([row.get(column, "") for column in COLUMNS])
    return out.getvalue()

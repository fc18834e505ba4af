"""What is found in models of other libraries, held against what these libraries compute.

Every model is built with random weights, without a network. Its pixels, logits and features by this
package are compared with the library's own transform, output and documented features. Of each:

equal    the same numbers
assumed  of pixels only: the model carries no transform, and a note says what was assumed
refused  the model has no output for each image, or takes more than pictures, and an error says so
said     other numbers or none, and an error or a note of the report says so
WRONG    other numbers, and nothing says so

``python benchmarks stacks [--library NAME ...] [--model TEXT] [--json FILE] [--table FILE]``
The exit status is 1 if anything is WRONG.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from zoo.checking import REFUSED, SAID, UNBUILT, VERDICTS, WRONG, Outcome, check

FOLDER = Path(__file__).parent / "zoo"
HELPERS = {"__init__", "case", "checking"}
PARTS = ("logits", "features", "pixels")
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in HELPERS)


def found_in(library: str, cases: Any, wanted: str) -> list[Outcome]:
    """Check the models of one library, and print those of which something is other than known."""
    outcomes = []
    start = time.perf_counter()
    for case in cases:
        if wanted not in case.name:
            continue
        outcome = check(library, case)
        outcomes.append(outcome)
        if outcome.verdict in (SAID, WRONG, UNBUILT):
            details = "".join(f"\n      {detail}" for detail in outcome.details)
            print(f"  {outcome.verdict:<9} {case.name}{details}", flush=True)
    counts = Counter(outcome.verdict for outcome in outcomes)
    figures = ", ".join(f"{counts[v]} {v}" for v in (*VERDICTS, UNBUILT) if counts[v])
    seconds = time.perf_counter() - start
    print(f"{library}: {len(outcomes)} models, {figures}; {seconds:.0f} s", flush=True)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", action="append", help="only this one; repeatable")
    parser.add_argument("--model", default="", help="only models with this in their name")
    parser.add_argument("--json", type=Path, help="write all outcomes to this file")
    parser.add_argument("--table", type=Path, help="write a table in Markdown to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    skipped: dict[str, str] = {}
    known: dict[str, Any] = {}
    for module in MODULES:
        try:
            libraries = importlib.import_module(f"zoo.{module}").LIBRARIES
        except ImportError as error:
            skipped[module.removesuffix("_models")] = str(error)
            continue
        known |= libraries
        for library, cases in libraries.items():
            if options.library and library not in options.library:
                continue
            try:
                made = list(cases())
            except ImportError as error:
                skipped[library] = str(error)
                continue
            outcomes += found_in(library, made, options.model)
    for library in options.library or ():
        if library not in known and library not in skipped:
            sys.exit(f"no library {library!r}; there are {', '.join(sorted(known))}")
    for library, reason in skipped.items():
        if not options.library or library in options.library:
            print(f"{library}: skipped, {reason}")
    _total(outcomes)
    if options.json:
        rows = [dataclasses.asdict(o) | {"verdict": o.verdict} for o in outcomes]
        text = json.dumps({"models": rows, "skipped": skipped}, indent=1)
        options.json.write_text(text, encoding="utf-8")
    if options.table:
        options.table.write_text(table(outcomes, known), encoding="utf-8")
    sys.exit(any(outcome.verdict == WRONG for outcome in outcomes))


def table(outcomes: list[Outcome], libraries: dict[str, Any]) -> str:
    """Return a row for each library, with what each of its models was checked against."""
    lines = ["| stack | models | logits | features | pixels | checked against |", "|---" * 6 + "|"]
    for library, cases in libraries.items():
        built = [o for o in outcomes if o.library == library and o.verdict != UNBUILT]
        if not built:
            continue
        cells = []
        for part in PARTS:
            counts = Counter(outcome.parts[part] for outcome in built if part in outcome.parts)
            cells.append(", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v]) or "-")
        refused = sum(outcome.verdict == REFUSED for outcome in built)
        models = f"{len(built)}" + (f", {refused} refused" if refused else "")
        against = " ".join(cases.__doc__.split()).rstrip(".")
        lines.append(f"| {library} | {models} | {' | '.join(cells)} | {against} |")
    return "\n".join(lines) + "\n"


def _total(outcomes: list[Outcome]) -> None:
    built = [outcome for outcome in outcomes if outcome.verdict != UNBUILT]
    libraries = len({outcome.library for outcome in built})
    print(f"\n{len(built)} models of {libraries} libraries")
    for part in PARTS:
        counts = Counter(outcome.parts[part] for outcome in built if part in outcome.parts)
        print(f"  {part:<9}" + "".join(f" {counts[v]:>4} {v}" for v in VERDICTS if v in counts))
    counts = Counter(outcome.verdict for outcome in built)
    print("  together " + "".join(f" {counts[v]:>4} {v}" for v in VERDICTS))


if __name__ == "__main__":
    main()

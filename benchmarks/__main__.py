"""Run a benchmark by its name: ``python benchmarks NAME [options]``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    script = FOLDER / f"{name}.py"
    if not name.isidentifier() or not script.is_file():
        helpers = {"__main__", "attacks", "common", "contrastive", "downstream", "opening"}
        known = sorted({path.stem for path in FOLDER.glob("*.py")} - helpers)
        sys.exit(f"no benchmark {name!r}; there are {', '.join(known)}")
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()

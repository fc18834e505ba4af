"""How much the plugin adds to ``pytest --help``, with kept bytecode and without.

``python benchmarks/startup.py [--rounds 20]`` builds a wheel and puts it, and pytest with nothing
else, into a temporary folder. Bare pytest and pytest with the plugin start in turns.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from statistics import median

from common import line
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parent.parent


def copy_distribution(name: str, folder: Path) -> None:
    """Copy an installed distribution, and those that it needs, as they are here."""
    try:
        found = distribution(name)
    except PackageNotFoundError:  # needed on other platforms only
        return
    for file in found.files or ():
        target = folder / file
        if ".." not in file.parts and file.suffix != ".pyc" and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), target)
    for text in found.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            copy_distribution(needed.name, folder)


def build_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, f"--wheel-dir={folder}", str(REPOSITORY)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def milliseconds(folders: list[Path], keep_bytecode: bool) -> float:
    # Without `site`, the folders hold all that is installed: other plugins would add their own time
    # and noise. The plugin is found by its entry point, as pytest rewrites all modules of such one.
    command = [sys.executable, "-S", "-m", "pytest", "--help"]
    environment = {"PATH": "", "PYTHONPATH": os.pathsep.join(map(str, folders))}
    if not keep_bytecode:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=folders[0].parent, env=environment, capture_output=True, check=True
    )
    spent = 1000 * (time.perf_counter() - start)
    assert (b"--wm-model" in done.stdout) == (len(folders) > 1)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bare, compiled, plain = (folder / name for name in ("bare", "compiled", "plain"))
        copy_distribution("pytest", bare)
        wheel = build_wheel(folder)
        for target in (compiled, plain):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
        for target in (bare, compiled):
            compileall.compile_dir(target, quiet=2)
        # pytest keeps bytecode of its own of the plugins whose assertions it rewrites.
        milliseconds([bare, compiled], keep_bytecode=True)
        added: dict[bool, list[float]] = {True: [], False: []}
        base: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(rounds):
            for keep, target in ((True, compiled), (False, plain)):
                base[keep].append(milliseconds([bare], keep))
                added[keep].append(milliseconds([bare, target], keep))
    for keep, words, most in ((True, "with bytecode", 30), (False, "without bytecode", 60)):
        alone, both = median(base[keep]), median(added[keep])
        figures = f"pytest --help {words}: {alone:.0f} ms bare, {both:.0f} ms with the plugin"
        line(figures, f"+{both - alone:.1f}", f"<= {most}", both - alone <= most)


if __name__ == "__main__":
    main()

"""Digests of everything that a result depends on; where that cannot be told, none.

Two values with one fingerprint must give the same result: a wrong one would be a wrong verdict.
The other way round costs time only, so code is compared by its bytes, and what may not matter is
taken in. Out of sight is only what code reads from outside when it runs: files, the environment,
the clock, random numbers, and modules that it finds by computed names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import nn

from pytest_watermark_guard.caching.encoder import Encoder, Unfingerprintable, framed
from pytest_watermark_guard.caching.inspection import file_digest

__all__ = ["Unfingerprintable", "fingerprint", "fingerprint_files", "fingerprint_model"]


def fingerprint(value: object, name: str = "value") -> str:
    """Return a digest of data, code and objects.

    Parameters
    ----------
    value : object
        Plain data, paths, enums, arrays, tensors, functions, classes, modules, and objects of
        Python classes, nested in any way. A path stands for itself, not for the file's content.
    name : str
        What error messages call it.

    Returns
    -------
    str
        Hexadecimal SHA-256; the same in every process, but for libraries that patch torch.

    Raises
    ------
    Unfingerprintable
        If some part of it has state that cannot be seen or that changes by itself.
    """
    with ThreadPoolExecutor(_threads()) as pool:
        encoder = Encoder(pool, name)
        try:
            encoder.encode(value)
            return encoder.digest().hex()
        except Unfingerprintable:
            raise
        except RecursionError:
            raise Unfingerprintable(f"{name}: nested too deeply") from None
        except Exception as error:  # whatever the properties of someone's objects raise
            raise encoder.refusal(f"{type(error).__name__}: {error}") from error


def fingerprint_model(module: nn.Module) -> str:
    """Return a digest of what a model computes in evaluation mode.

    Weights, buffers, attributes, structure and code; neither where the weights are nor whether
    they are trained.

    Parameters
    ----------
    module : torch.nn.Module
        Wrappers such as ``DataParallel`` do not count. Never changed.

    Returns
    -------
    str
        Hexadecimal SHA-256; the same in every process, but for libraries that patch torch.

    Raises
    ------
    Unfingerprintable
        If some part of it has state that cannot be seen, as hooks have, or TorchScript.
    """
    return fingerprint(module, "model")


def fingerprint_files(root: Path, names: Sequence[str]) -> str:
    """Return a digest of files' names and contents, in the order given.

    Parameters
    ----------
    root : Path
    names : sequence of str
        Relative to `root`.

    Raises
    ------
    Unfingerprintable
        If a file cannot be read.
    """

    def digests(some: Sequence[str]) -> list[bytes]:
        return [file_digest(os.path.join(root, name)) for name in some]  # noqa: PTH118 - speed

    total = hashlib.sha256()
    shares = [names[first : first + 64] for first in range(0, len(names), 64)]
    with ThreadPoolExecutor(_threads()) as pool:
        try:
            for share, contents in zip(shares, pool.map(digests, shares), strict=True):
                for name, content in zip(share, contents, strict=True):
                    total.update(framed("file", os.fsencode(name)) + content)
        except OSError as error:
            raise Unfingerprintable(f"{error.filename}: {error.strerror}") from error
    return total.hexdigest()


def _threads() -> int:
    return min(8, os.cpu_count() or 1)

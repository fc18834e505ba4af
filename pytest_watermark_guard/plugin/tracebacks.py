"""An error that we raise on purpose shows the user's line, and no frame of ours."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType

import pytest

from pytest_watermark_guard.errors import (
    OwnershipMismatchError,
    WatermarkGuardError,
    WatermarkSensitivityError,
)
from pytest_watermark_guard.reports.log_lines import inert

_ON_PURPOSE = (WatermarkGuardError, WatermarkSensitivityError, OwnershipMismatchError)
# Our errors often leave a context manager of ours, and so a frame of that module.
_OURS = (str(Path(__file__).parents[1]) + os.sep, contextlib.__file__)


def hide_our_frames(excinfo: pytest.ExceptionInfo[BaseException], config: pytest.Config) -> None:
    """Leave our frames out of what pytest prints of an error, and of its causes.

    Errors of other types may be faults of ours, and ``--full-trace`` asks for everything: these
    stay as they are.
    """
    if config.getoption("fulltrace", False) or not isinstance(excinfo.value, _ON_PURPOSE):
        return
    excinfo.value.args = tuple(inert(a) if isinstance(a, str) else a for a in excinfo.value.args)
    theirs = _without_ours(excinfo.tb)
    if theirs is not None:
        # pytest goes by the raw frames below the test, whatever was left out above them.
        excinfo.traceback = type(excinfo.traceback)(theirs)
    error: BaseException = excinfo.value
    seen = {id(error)}
    while (cause := error.__cause__ or error.__context__) is not None and id(cause) not in seen:
        cause.__traceback__ = _without_ours(cause.__traceback__)
        error = cause
        seen.add(id(cause))


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    if traceback is None:
        return None
    rest = _without_ours(traceback.tb_next)
    if _is_ours(traceback.tb_frame.f_code.co_filename):
        return rest
    return TracebackType(rest, traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)


def _is_ours(file: str) -> bool:
    return file.startswith(_OURS)

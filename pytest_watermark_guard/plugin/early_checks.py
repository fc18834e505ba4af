"""Options that cannot work, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import pytest

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.models.loading.specs import ModelSpec, parse_spec
from pytest_watermark_guard.plugin.imports import imported_for_good
from pytest_watermark_guard.probing.context import Run
from pytest_watermark_guard.setting_values import user_path
from pytest_watermark_guard.watermarks.scenarios import PairedFolder, resolve_scenarios


def parsed_specs(config: pytest.Config, models: Iterable[str]) -> dict[str, ModelSpec]:
    """Read model specs, by their text; none where a plugin loads forms of its own.

    Raises `ModelSpecError` for a spec of no known form.
    """
    if config.hook.pytest_wm_load_model.get_hookimpls():
        return {}
    return {text: parse_spec(text) for text in models}


def check_options(
    config: pytest.Config, run: Run, gated: Collection[str], specs: Mapping[str, ModelSpec]
) -> None:
    """Raise `WatermarkGuardError` for what is known to fail.

    What an ini file says for everybody may be missing here, as on the machine of somebody who runs
    a few unit tests, or whose editor only collects: it matters once models are gated.
    """
    if config.option.collectonly or hasattr(config, "workerinput"):
        return

    def matters(option: str) -> bool:
        return bool(gated) or config.getoption(f"wm_{option}") is not None

    settings, images = run.settings, run.settings.images
    if matters("images") and isinstance(images, str) and images != "builtin":
        _check_folder("images", images)
    if matters("scenarios"):
        for scenario in resolve_scenarios(settings.scenarios, run.scenarios):
            if isinstance(scenario, PairedFolder):
                _check_folder(f"scenario {scenario.name!r}", scenario.folder)
    if matters("device") and settings.device not in ("auto", "cpu"):
        from pytest_watermark_guard.models.device import resolve_device

        resolve_device(settings.device)
    if gated and specs:
        from pytest_watermark_guard.models.loading.lookups import check_named

        # Workers of xdist would wait for it, and import the same: there, the gates find out.
        here = not config.getoption("numprocesses", None)
        with imported_for_good():
            for text in gated:
                check_named(specs[text], importing=here)


def _check_folder(name: str, folder: str) -> None:
    if not user_path(name, folder).is_dir():
        raise SettingsError(
            f"{name}: {folder!r} is not a folder; name one of JPEG, PNG, WebP or BMP files"
        )

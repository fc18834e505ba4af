"""What a probe's cached data depend on, as keys."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass

import PIL
import torch
from torch import nn

from pytest_watermark_guard.caching.keys import NoKeyError, digest
from pytest_watermark_guard.images.batches import ProbingBatches
from pytest_watermark_guard.images.contents import FileContents
from pytest_watermark_guard.images.folder import paired_path
from pytest_watermark_guard.models.adapters.adapter import AdaptedModel
from pytest_watermark_guard.models.device import device_name
from pytest_watermark_guard.probing.caches.used_images import Copies, UsedImages
from pytest_watermark_guard.setting_values import user_path
from pytest_watermark_guard.version import __version__
from pytest_watermark_guard.watermarks.scenarios import PairedFolder, Scenario
from pytest_watermark_guard.watermarks.streams import BLOBS, UNMARKED, control_of
from pytest_watermark_guard.watermarks.text import font_path

_FORMAT = "activations/8"  # raise the number when the same key would mean other numbers


@dataclass(frozen=True)
class CacheKeys:
    """Digests that keys are made of.

    Attributes
    ----------
    base : str
        Model, preprocessing, names and sizes of the images, precision, and the libraries that
        compute.
    streams : mapping of str to str
        How the images of each stream are marked.
    exact : str
        With ``precision="float32"`` all that the last bits depend on, so that activations are
        used again only where they are the same to the last bit; else empty.
    plan : str
        Key of the fastest way to run the model on this machine.
    images : UsedImages
        The images' contents, which no key holds: they are read as far as they are used.
    """

    base: str
    streams: Mapping[str, str]
    exact: str
    plan: str
    images: UsedImages

    def key(self, *rest: str) -> str:
        """Return the key of something that depends on `rest` as well."""
        return digest(self.base, rest)

    def content(self, images: int) -> str | None:
        """Return a digest of the first images, or None if one has changed since they were listed.

        What is found on them is kept with it, and used while it is the same.
        """
        try:
            return self.images.digest(images)
        except NoKeyError:
            return None


def cache_keys(
    module: nn.Module,
    batches: ProbingBatches,
    precision: str,
    outputs: str,
    batch_size: int | None,
    threads: int,
) -> CacheKeys:
    """Make the keys of a probe.

    Parameters
    ----------
    module : torch.nn.Module
    batches : ProbingBatches
    precision, outputs, batch_size, threads
        As asked for: what is found to be the fastest may differ from run to run.

    Raises
    ------
    NoKeyError
        If the images or the model's tensors have no digest.
    """
    if isinstance(module, AdaptedModel) and not module.identity:
        raise NoKeyError(f"nothing tells the function {module.called} from another one")
    model = digest(module)
    seed, baseline = batches.seed, batches.baseline
    device = device_name(batches.device)
    versions = __version__, torch.__version__, PIL.__version__
    streams = {UNMARKED: digest("unmarked")}
    copies: dict[str, Copies] = {}
    for scenario in batches.scenarios:
        if isinstance(scenario, PairedFolder):
            copies[scenario.name] = _copies(scenario, baseline.identities)
            drawn = digest(copies[scenario.name].listing())
        else:
            drawn = _scenario_digest(scenario, seed)
        streams[scenario.name] = drawn
        streams[control_of(scenario.name)] = digest(drawn, "control")
        streams[control_of(scenario.name, BLOBS)] = digest(drawn, "blobs")
    return CacheKeys(
        base=digest(
            _FORMAT,
            (model, outputs),
            versions,
            (batches.device.type, device, precision, batches.dtype, _float32_settings()),
            batches.preprocessing,
            (baseline.contents.listing(baseline.identities), baseline.identities),
        ),
        streams=streams,
        exact=digest(batches.streams, batch_size, threads) if precision == "float32" else "",
        plan=digest(
            _FORMAT,
            model,
            versions,
            (batches.device.type, device, platform.machine(), threads),
            (precision, batches.preprocessing.size, batch_size),
        ),
        images=UsedImages(baseline, copies),
    )


def _copies(scenario: PairedFolder, identities: tuple[str, ...]) -> Copies:
    folder = user_path(f"scenario {scenario.name!r}", scenario.folder)
    names = tuple(os.path.relpath(paired_path(folder, name), folder) for name in identities)
    return Copies(FileContents(folder), names)


def _scenario_digest(scenario: Scenario, seed: int) -> str:
    font = font_path(scenario)
    return digest(scenario, seed, FileContents(font.parent).together([font.name]))


def _float32_settings() -> object:
    """Return what float32 may mean on this machine: the old way to ask fails after the new."""
    owners = [torch.backends.cuda, torch.backends.mkldnn, torch.backends.cudnn]
    parts = [getattr(owner, name, None) for owner in owners for name in ("matmul", "conv")]
    settings = [getattr(part, "fp32_precision", None) for part in parts]
    return settings if any(settings) else torch.get_float32_matmul_precision()

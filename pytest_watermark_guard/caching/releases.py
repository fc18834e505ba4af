"""Which installed release a module's source belongs to, if any pins it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import torch
import torchvision

# Looking for a distribution by its content takes a second in a large environment.
_DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python", "sklearn": "scikit-learn"}


def release_of(module_name: str) -> str | None:
    """Return what pins the source of a module: its distribution and version.

    Parameters
    ----------
    module_name : str
        As in ``sys.modules``; only the part before the first dot counts.

    Returns
    -------
    str or None
        None for source that can change without a new release: the user's own files, notebooks
        and editable installs.
    """
    return _release(module_name.partition(".")[0])


@functools.cache
def _release(root: str) -> str | None:
    if not root:
        return None
    file = _file(root)
    if root in sys.stdlib_module_names and (
        file is None or file.is_relative_to(sysconfig.get_path("stdlib"))
    ):
        return f"python {sys.version}"
    if root == "torch":  # a build from source carries its commit
        return f"torch {torch.__version__} {torch.version.git_version}"
    if root == "torchvision":
        return f"torchvision {torchvision.__version__}"
    if file is None or not {"site-packages", "dist-packages"} & {*file.parts}:
        return None
    for name in _distributions(root):
        distribution = metadata.distribution(name)
        record = distribution.read_text("RECORD")
        if record is None:  # a system's package: its version is all there is
            return f"{name} {distribution.version}"
        # RECORD has a hash of every file, so a reinstallation under the same version shows.
        # An editable install lists other files than the package's.
        lines = f"\n{record}"
        if f"\n{root}/{file.name}," in lines or f"\n{file.name}," in lines:
            digest = hashlib.sha256(record.encode()).hexdigest()
            return f"{name} {distribution.version} {digest}"
    return None


def _file(root: str) -> Path | None:
    if root in sys.modules:
        file = getattr(sys.modules[root], "__file__", None)
        return None if file is None else Path(file)
    spec = importlib.util.find_spec(root)
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _distributions(root: str) -> list[str]:
    try:
        return [metadata.distribution(_DISTRIBUTIONS.get(root, root)).name]
    except metadata.PackageNotFoundError:
        return metadata.packages_distributions().get(root, [])

"""The Python of README, docs and the tutorial runs, on a small model and a few photos."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pages
import pytest
import torch
from PIL import Image, features

import pytest_watermark_guard as wm

pytestmark = [
    pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm"),
    pytest.mark.filterwarnings("default"),
]

# Why, a comment above each of these blocks says.
NOT_RUN = {
    "docs/how-to/lightning.md": 1,
    "docs/how-to/ownership.md": 2,
    "docs/how-to/ray.md": 1,
}
NEEDS = {
    "docs/how-to/hugging-face.md": ("transformers",),
    "docs/how-to/masking.md": ("concept_erasure",),
    "docs/how-to/onnx.md": ("onnx", "onnxruntime", "onnxscript"),
    "docs/how-to/search.md": ("matplotlib",),
    "docs/how-to/survey.md": ("matplotlib",),
    "docs/how-to/timm.md": ("timm",),
}
# What pages speak of as the reader's own.
READERS_OWN = '''
import torch
from torch import nn

import pytest_watermark_guard as wm


class Shop(nn.Module):
    """One of its nine features sees white strokes."""

    preprocessing = wm.Preprocessing(size=(96, 96), resize=96, mean=(0,) * 3, std=(1,) * 3)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(9, 2)

    def forward(self, x):
        rise = (x[..., 1:] - x[..., :-1]).amin(1)
        strokes = (rise > 0.2).float().mean((1, 2))
        colours = nn.functional.adaptive_avg_pool2d(x, 2)[:, :2].flatten(1)
        return self.fc(torch.cat([colours, strokes[:, None]], 1))


def build_model():
    torch.manual_seed(0)
    return Shop().eval()


def train_head(backbone):
    backbone.fc = nn.Linear(9, 2)
    return backbone


release_candidate = build_model
model, backbone = build_model(), build_model()
x = torch.rand(2, 3, 96, 96)


def my_transform(batch):
    return batch
'''
FIXTURES = """
import pytest
import readers_own


@pytest.fixture
def model():
    return readers_own.build_model()


@pytest.fixture
def backbone():
    return readers_own.build_model()
"""


@pytest.fixture(scope="session")
def readers_files(tmp_path_factory):
    """Folders of photos, and weights."""
    folder = tmp_path_factory.mktemp("reader")
    photos = [Image.fromarray(pixels) for pixels in wm.builtin_images()[:24]]
    for name in ("photos", "training_images", "train/cat", "validation/cat"):
        (folder / name).mkdir(parents=True)
        for index, photo in enumerate(photos):
            photo.save(folder / name / f"{index:02}.png")
    for split in ("train", "validation"):
        shutil.copytree(folder / split / "cat", folder / split / "dog")
    return folder


@pytest.fixture
def reader(pytester, readers_files, monkeypatch):
    """A reader's repository, which is the working directory."""
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copytree(readers_files, pytester.path, dirs_exist_ok=True)
    pytester.makepyfile(readers_own=READERS_OWN)
    pytester.mkpydir("my_package").joinpath("models.py").write_text(READERS_OWN)
    pytester.makeconftest(FIXTURES)
    pytester.syspathinsert()
    return pytester


def prepare(page, reader):
    """Write what one page alone takes for granted."""
    if page == "docs/how-to/python.md":
        import torchvision
        from safetensors.torch import save_file

        save_file(torchvision.models.mobilenet_v2(weights=None).state_dict(), "model.safetensors")
    if page == "docs/how-to/releases.md":
        from readers_own import model

        for name, seed in (("v1.json", 1), ("v2.json", 2)):
            wm.probe(model, "photos/", seed=seed).save(name)
    if page == "docs/how-to/timm.md":
        import timm

        model = timm.create_model("mobilenetv3_small_050", num_classes=2)
        torch.save(model.state_dict(), "best.pt")
    if page == "docs/how-to/hugging-face.md":
        import transformers

        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2
        )
        transformers.ResNetForImageClassification(config).save_pretrained("my-model")
        transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained("my-model")


def run_as_tests(code, reader):
    """Run a block of tests as a reader would."""
    reader.path.joinpath("test_block.py").write_text(f"from readers_own import *\n\n{code}")
    result = reader.runpytest(
        "test_block.py", "--wm-images=photos", "--wm-max-images=8", "--wm-inconclusive=pass"
    )
    outcomes = result.parseoutcomes()
    assert set(outcomes) <= {"passed", "warnings", "warning"}, result.stdout.str()
    assert outcomes["passed"] >= 1


def python_blocks(page):
    return [block for block in pages.blocks_of(Path(page)) if block.language == "python"]


PAGES = [page.as_posix() for page in pages.PAGES if python_blocks(page) and page.suffix != ".ipynb"]


@pytest.mark.wm_settings(max_images=12, inconclusive="pass")
@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, reader):
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    prepare(page, reader)
    names: dict = {"__name__": "page"}
    exec(READERS_OWN, names)
    for block in python_blocks(page):
        if not block.is_run:
            continue
        if "def test_" in block.code:
            run_as_tests(block.code, reader)
        else:
            # As many lines down as in the page, for the traceback.
            source = "\n" * block.line + block.code
            exec(compile(source, str(pages.ROOT / page), "exec"), names)


def test_blocks_that_are_not_run():
    counts = Counter(page for page in PAGES for block in python_blocks(page) if not block.is_run)
    assert counts == NOT_RUN


def test_the_tutorial_runs(reader, capfd):
    cells = python_blocks("docs/tutorial.ipynb")
    assert len(cells) >= 5
    names: dict = {"__name__": "tutorial"}
    with torch.random.fork_rng():
        for number, cell in enumerate(cells, 1):
            exec(compile(cell.code, f"cell {number}", "exec"), names)
    printed = capfd.readouterr().out
    assert "1 of 3 logits and 1 of 3 features react to chinese marks" in printed
    assert "1 passed" in printed
    assert Path("watermarks.html").stat().st_size > 10_000

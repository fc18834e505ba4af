"""Draw the picture at the top of the README: a photo with and without a mark, and the report.

Needs ``pip install matplotlib selenium timm``, Chromium with its driver, and the folder that
``WATERMARK_GUARD_DATA`` names, with ``models/tf_efficientnet_lite0.safetensors``. The photos are
the built-in ones. Run it as ``python scripts/draw_overview.py``; it writes
docs/images/overview.png.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

import pytest_watermark_guard as wm

mpl.use("Agg")
from matplotlib import pyplot as plt

OUT = Path(__file__).parents[1] / "docs" / "images" / "overview.png"
WEIGHTS = Path(os.environ["WATERMARK_GUARD_DATA"]) / "models" / "tf_efficientnet_lite0.safetensors"
CLASSES = ("carton", "monitor", "apron", "safe", "mosquito net")  # those that lead on real photos
SIZE = 224
THRESHOLD = 0.9
GREY, RED = "#777777", "#b3261e"


def main() -> None:
    """Draw it."""
    model = wm.load_model(f"timm:tf_efficientnet_lite0?weights={WEIGHTS}").module.eval()
    report = wm.probe(
        model,
        "builtin",
        ("chinese",),
        name="EfficientNet-Lite0",
        precision="float32",
        examples=True,
    )
    names = report["logits", "chinese"].names
    indices = [names.index(name) for name in CLASSES]
    clean, marked, before, after = best_pair(model, indices)

    figure = plt.figure(figsize=(13, 3.9), dpi=100)
    grid = figure.add_gridspec(1, 4, width_ratios=(1, 1, 0.9, 1.75), wspace=0.08)
    for place, picture, title in ((0, clean, "a photo"), (1, marked, "with a mark")):
        axis = figure.add_subplot(grid[place])
        axis.imshow(picture)
        axis.set_title(title, fontsize=13)
        axis.axis("off")
    draw_scores(figure.add_subplot(grid[2]), before, after)
    axis = figure.add_subplot(grid[3])
    axis.imshow(top_of_page(report))
    axis.set_title("the report", fontsize=13)
    axis.set(xticks=[], yticks=[])
    picture = io.BytesIO()
    figure.savefig(picture, bbox_inches="tight")
    OUT.parent.mkdir(exist_ok=True)
    # A palette: a third of the bytes, and no difference to see.
    Image.open(picture).convert("RGB").quantize(192).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size // 1024} KiB")
    for name, index in zip(CLASSES, indices, strict=True):
        print(f"{name}: A = {report['logits', 'chinese'].auroc[index]:.3f} on the built-in images")


def best_pair(model, indices):
    """Return the photo whose scores of these classes rise most in all, and these scores."""
    plain = wm.Preprocessing(size=(SIZE, SIZE), resize=SIZE, mean=(0,) * 3, std=(1,) * 3)
    (batch,) = wm.probing_batches(None, ("chinese",), preprocess=plain, batch_size=256)
    with torch.no_grad():  # the model's mean and deviation are 0.5
        before, after = (
            model((pixels - 0.5) / 0.5)[:, indices]
            for pixels in (batch.images, batch.marked["chinese"])
        )
    # Of the photos whose scores rise most, one that fills its frame.
    rising = (after - before).amin(1).topk(16).indices
    edges = batch.images[rising][:, :, [0, 1, -2, -1]].flatten(1).std(1)
    best = int(rising[edges.argmax()])
    pictures = (
        (pixels[best].permute(1, 2, 0) * 255).round().byte().numpy()
        for pixels in (batch.images, batch.marked["chinese"])
    )
    return *pictures, before[best].tolist(), after[best].tolist()


def draw_scores(axis, before, after) -> None:
    """Draw how far the score of each class rises."""
    rows = range(len(CLASSES))
    axis.hlines(rows, before, after, color=RED, linewidth=2)
    axis.scatter(before, rows, color=GREY, s=50, zorder=3)
    axis.scatter(after, rows, color=RED, s=70, marker=">", zorder=3)
    for row, name, low in zip(rows, CLASSES, before, strict=True):
        axis.text(low, row - 0.18, name, fontsize=11, ha="left")
    axis.invert_yaxis()
    axis.set(yticks=[], ylim=(len(CLASSES) - 0.5, -0.75))
    axis.set_title("class scores: ● without, ▶ with", fontsize=12)
    axis.tick_params(labelsize=9)
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)


def top_of_page(report) -> Image.Image:
    """Return what a reader of the HTML page sees first."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        report.to_html(page, threshold=THRESHOLD)
        browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            browser.set_window_size(820, 760)
            browser.get(page.as_uri())
            return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        finally:
            browser.quit()


if __name__ == "__main__":
    main()

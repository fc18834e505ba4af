"""Cut the fonts that ship in the package from Debian's font packages.

Needs Debian's fonts-noto-cjk, fonts-noto-cjk-extra, fonts-noto-core and fonts-liberation2, and
``pip install fonttools``.
Run it as ``python scripts/cut_fonts.py``; the same packages give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

from pytest_watermark_guard.watermarks.scenarios import FONTS, READY_SCENARIOS

DEBIAN_FONTS = Path("/usr/share/fonts")
LATIN = "".join(map(chr, range(0x20, 0x7F))) + "©®™€£"
# font -> (file in Debian's packages, index of the face in a collection, characters to keep)
SOURCES = {
    "song": (
        "opentype/noto/NotoSerifCJK-Regular.ttc",
        2,
        "".join(READY_SCENARIOS["chinese"].alphabet),
    ),
    "song-light": (
        "opentype/noto/NotoSerifCJK-ExtraLight.ttc",
        2,
        "".join(READY_SCENARIOS["imagenet_w"].alphabet),
    ),
    "devanagari": (
        "truetype/noto/NotoSansDevanagari-Bold.ttf",
        0,
        "".join(READY_SCENARIOS["hindi"].alphabet) + "\u25cc",  # dotted circle: for vowel signs
    ),
    "serif": ("truetype/liberation2/LiberationSerif-Regular.ttf", 0, LATIN),
}


def rename(font: TTFont, family: str) -> None:
    """Give the subset a name of its own: the OFL keeps the originals' names for the originals."""
    for record in font["name"].names:
        if record.nameID in (1, 3, 4, 6, 16, 18, 21):
            record.string = family
    if "CFF " in font:
        cff = font["CFF "].cff
        cff.fontNames[0] = family
        cff.topDictIndex[0].FullName = cff.topDictIndex[0].FamilyName = family


def cut(name: str) -> None:
    """Write the subset of one font beside the package's other fonts, and print its size."""
    source, face, characters = SOURCES[name]
    options = subset.Options(layout_features=["*"], recalc_timestamp=False, notdef_outline=True)
    font = TTFont(DEBIAN_FONTS / source, fontNumber=face, recalcTimestamp=False)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=characters)
    subsetter.subset(font)
    rename(font, FONTS[name].stem)
    font.save(FONTS[name])
    print(f"{FONTS[name].name}: {FONTS[name].stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    for font_name in SOURCES:
        cut(font_name)

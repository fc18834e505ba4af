"""What is printed over the images: scripts drawn afresh, or marked copies that exist already.

Plain data, read when pytest parses its options: nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import MappingProxyType

from pytest_watermark_guard.errors import ScenarioError, did_you_mean

_FONT_FOLDER = Path(__file__).parent / "fonts"
FONTS: Mapping[str, Path] = MappingProxyType(
    {
        "song": _FONT_FOLDER / "WatermarkGuardSong.otf",
        "song-light": _FONT_FOLDER / "WatermarkGuardSongLight.otf",
        "devanagari": _FONT_FOLDER / "WatermarkGuardDevanagari.ttf",
        "serif": _FONT_FOLDER / "WatermarkGuardSerif.ttf",
    }
)

POSITIONS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "top-left": (0.0, 0.0),
        "top": (0.5, 0.0),
        "top-right": (1.0, 0.0),
        "left": (0.0, 0.5),
        "centre": (0.5, 0.5),
        "right": (1.0, 0.5),
        "bottom-left": (0.0, 1.0),
        "bottom": (0.5, 1.0),
        "bottom-right": (1.0, 1.0),
    }
)
"""Places for the ink, as shares of the room that it leaves: (across, down)."""


def _check_name(name: str) -> None:
    __tracebackhide__ = True
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ScenarioError(f"a scenario's name must be printable text, got {name!r}")


@dataclass(frozen=True)
class Scenario:
    """A kind of text watermark: one random string per image, at a random or a fixed place.

    Parameters
    ----------
    name : str
        How options, tables and reports call it.
    alphabet : str or sequence of str
        Symbols that strings are drawn from, uniformly and with replacement. White space in a
        ``str`` separates; without any, every character is a symbol.
    font : str or path, default "serif"
        A font file, or a font of the package: ``serif`` (Times metrics; ASCII), ``song``,
        ``devanagari`` and ``song-light`` (just the symbols of the scenarios chinese, hindi and
        imagenet_w).
    length : int, default 7
        Symbols per string.
    size : float, default 30
        Font size in pixels on an image whose shorter side is 224; scales with the input.
    opacity : float, default 1.0
        From just above 0 (barely there) to 1 (opaque).
    color : str or tuple of int, default "white"
        Any colour that Pillow knows by name or ``#rrggbb``, or an (R, G, B) triple.
    position : str or (float, float), default "random"
        ``"random"``: anywhere, with the whole ink inside the image. A name of `POSITIONS`, such as
        ``"centre"`` or ``"bottom-right"``, or how far across and down the ink goes, as shares of
        the room that it leaves: (0, 0) is the top left corner, (1, 1) the bottom right one.

    Raises
    ------
    ScenarioError
        If a value cannot be used.

    Notes
    -----
    The defaults for length, size, opacity and colour are those of Bykov et al. (2023), section 3.
    """

    name: str
    alphabet: tuple[str, ...]
    font: str = "serif"
    length: int = 7
    size: float = 30
    opacity: float = 1.0
    color: str | tuple[int, int, int] = "white"
    position: str | tuple[float, float] = "random"

    def __init__(
        self,
        name: str,
        alphabet: str | Iterable[str],
        font: str | Path = "serif",
        length: int = 7,
        size: float = 30,
        opacity: float = 1.0,
        color: str | tuple[int, int, int] = "white",
        position: str | tuple[float, float] = "random",
    ) -> None:
        __tracebackhide__ = True  # most are made where files of tests are read
        _check_name(name)
        if isinstance(alphabet, str):
            alphabet = alphabet.split() if len(alphabet.split()) > 1 else alphabet.strip()
        symbols = tuple(alphabet)
        if not symbols or not all(isinstance(s, str) and s.strip() for s in symbols):
            raise ScenarioError(
                f"scenario {name!r}: the alphabet must hold at least one visible symbol, "
                f"got {alphabet!r}"
            )
        if not isinstance(length, int) or length < 1:
            raise ScenarioError(
                f"scenario {name!r}: length must be an integer >= 1, got {length!r}"
            )
        if not isinstance(size, Real) or not 0 < size < float("inf"):
            raise ScenarioError(f"scenario {name!r}: size must be a positive number, got {size!r}")
        if not isinstance(opacity, Real) or not 0 < opacity <= 1:
            raise ScenarioError(f"scenario {name!r}: opacity must be in (0, 1], got {opacity!r}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "alphabet", symbols)
        object.__setattr__(self, "font", str(font))
        object.__setattr__(self, "length", length)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "opacity", float(opacity))
        object.__setattr__(self, "color", color if isinstance(color, str) else tuple(color))
        object.__setattr__(self, "position", _checked_position(name, position))

    @property
    def place(self) -> tuple[float, float] | None:
        """How far across and down the ink goes; None if that is drawn for each image."""
        if isinstance(self.position, str):
            return POSITIONS.get(self.position)
        return self.position


def _checked_position(name: str, position: object) -> str | tuple[float, float]:
    __tracebackhide__ = True
    hint = ""
    if isinstance(position, str):
        if position == "random" or position in POSITIONS:
            return position
        hint = did_you_mean(position, ("random", *POSITIONS))
    elif (
        isinstance(position, tuple | list)
        and len(position) == 2
        and all(isinstance(share, Real) and 0 <= float(share) <= 1 for share in position)
    ):
        across, down = position
        return float(across), float(down)
    raise ScenarioError(
        f"scenario {name!r}: position must be 'random', one of {', '.join(POSITIONS)}, or two "
        f"numbers in [0, 1] (how far across and down), got {position!r}{hint}"
    )


@dataclass(frozen=True)
class PairedFolder:
    """A scenario whose marked copies exist already, under the baseline images' file names.

    Parameters
    ----------
    name : str
        How options, tables and reports call it.
    folder : str or path
        The marked copies. Image ``a/b.jpg`` of the baseline folder is paired with ``a/b.jpg``
        here or, where that is absent, with the one file that differs by its suffix only.
    """

    name: str
    folder: str

    def __init__(self, name: str, folder: str | Path) -> None:
        __tracebackhide__ = True
        _check_name(name)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "folder", str(folder))


AnyScenario = Scenario | PairedFolder

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        scenario.name: scenario
        for scenario in (
            Scenario(
                "chinese",
                "的 一 是 不 了 在 人 有 我 他 这 个 们 中 来 上 大 为 和 国",
                font="song",
            ),
            Scenario("latin", "I E A U T S R N O M C L P D B Q G V F H"),
            Scenario(
                "hindi",
                "ा क े र ह स न ी ं म ि ् त प ल ो य ै ब द",
                font="devanagari",
            ),
            Scenario("arabic_numerals", "1 2 3 4 5 6 7 8 9 0"),
        )
    }
)
"""The four scripts of Bykov et al. (2023): the most frequent characters of each."""

# Text, white at half opacity, 36 px at 224 and the upright place are those of ImageNet-W (Li et
# al., 2023, "A Whac-A-Mole Dilemma", imagenet_w/watermark_transform.py), and so is the typeface:
# Source Han Serif ExtraLight goes by the name of Noto Serif CJK as well. They place the text's
# corner, we its ink: the shares below give the same pixels at 224.
_IMAGENET_W = Scenario(
    "imagenet_w",
    ("捷径",),
    font="song-light",
    length=3,
    size=36,
    opacity=0.5,
    position=(0.3, 0.53),
)

READY_SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {**SCENARIOS, _IMAGENET_W.name: _IMAGENET_W}
)
"""Those that can be asked for by name; the others than the four scripts only so."""


def resolve_scenarios(
    wanted: Iterable[str | AnyScenario], known: Mapping[str, AnyScenario] = READY_SCENARIOS
) -> tuple[AnyScenario, ...]:
    """Turn names and scenarios into scenarios; raises `ScenarioError` for what cannot be probed."""
    if isinstance(wanted, str | Scenario | PairedFolder):
        wanted = (wanted,)
    resolved: list[AnyScenario] = []
    for item in wanted:
        if isinstance(item, str):
            if item not in known:
                raise ScenarioError(
                    f"unknown scenario {item!r}; known are {', '.join(known)}"
                    f"{did_you_mean(item, known) or '.'} Pass a Scenario or a PairedFolder for "
                    "one of your own"
                )
            item = known[item]
        elif not isinstance(item, Scenario | PairedFolder):
            raise ScenarioError(
                f"a scenario is a name, a Scenario or a PairedFolder, got {type(item).__name__}"
            )
        resolved.append(item)
    names = [scenario.name for scenario in resolved]
    if not names:
        raise ScenarioError(f"no scenario was asked for; known are {', '.join(known)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ScenarioError(f"scenario {twice[0]!r} is asked for twice; names must differ")
    return tuple(resolved)

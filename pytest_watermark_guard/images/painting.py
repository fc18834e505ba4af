"""How an image of the built-in set is painted: see `images.builtin`.

Everything is drawn from one SHAKE-256 stream per image and computed in integers, or by Pillow
operations on 8 bits that round alike everywhere, so that the bytes do not depend on the platform
or on the versions of NumPy and Pillow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

SIZE = 224

_MIN_DETAIL = 14  # mean of |horizontal| + |vertical| differences of neighbouring grey levels
_CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
# round(256 * cos(2 pi k / 64)) for k = 0..16, written out as libraries round differently
_COSINES = (256, 255, 251, 245, 237, 226, 213, 198, 181, 162, 142, 121, 98, 74, 50, 25, 0)

_Ints = NDArray[np.int64]
_Y: _Ints
_X: _Ints
_Y, _X = np.indices((SIZE, SIZE), np.int64)


class _Photo(NamedTuple):
    image: Image.Image
    detail: _Ints


class _Draws:
    """Uniform integers that are the same on every platform."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._blocks = 0
        self._bytes = b""

    def block(self, count: int) -> bytes:
        self._blocks += 1
        return hashlib.shake_256(f"{self._key}/{self._blocks}".encode()).digest(count)

    def below(self, stop: int) -> int:
        if not self._bytes:
            self._bytes = self.block(4096)
        word, self._bytes = self._bytes[:4], self._bytes[4:]
        return int.from_bytes(word, "little") * stop >> 32

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def skewed(self, low: int, high: int) -> int:
        return low + (high - low) * self.below(257) * self.below(257) // 65536

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent


@cache
def _photos() -> list[_Photo]:
    photos = []
    for name in ("china.jpg", "flower.jpg"):
        image = _sample_photo(name)
        grey = np.asarray(image.convert("L")).astype(np.int64)
        detail = np.zeros_like(grey)
        detail[1:] += abs(grey[1:] - grey[:-1])
        detail[:, 1:] += abs(grey[:, 1:] - grey[:, :-1])
        photos.append(_Photo(image, detail))
    return photos


def _sample_photo(name: str) -> Image.Image:
    """Read a photo that scikit-learn ships, without importing it, which takes most of a second."""
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder, "datasets", "images", name)
        if path.is_file():
            with Image.open(path) as photo:
                return photo.convert("RGB")
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(name))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    # One axis at a time: which one Pillow resizes first depends on its version, and each rounds.
    image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _direction(turn: int) -> tuple[int, int]:
    """256 times the cosine and sine of `turn` 64ths of a circle."""

    def cosine(k: int) -> int:
        k = min(k % 64, 64 - k % 64)
        return _COSINES[k] if k <= 16 else -_COSINES[32 - k]

    return cosine(turn), cosine(turn - 16)


def _mask(coverage: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(coverage, 0, 255).astype(np.uint8))


class _Painter:
    """Paints one image; every method draws from the same stream."""

    def __init__(self, photos: Sequence[_Photo], draws: _Draws) -> None:
        self.photos = photos
        self.draws = draws

    # Parts

    def crop(self) -> Image.Image:
        draws = self.draws
        for _ in range(4):  # sky and defocused leaves cover much of the photos: look for detail
            photo = self.photos[draws.below(len(self.photos))]
            limit = photo.image.height
            width = draws.skewed(40, limit) if draws.chance(50) else draws.between(40, limit)
            height = min(limit, width * draws.between(70, 140) // 100)
            left = draws.below(photo.image.width - width + 1)
            top = draws.below(limit - height + 1)
            detail = photo.detail[top : top + height, left : left + width]
            if int(detail.sum()) >= _MIN_DETAIL * width * height:
                break
        image = photo.image.crop((left, top, left + width, top + height))
        image = _resize(image, SIZE, SIZE)
        turn = draws.below(8)
        return image if turn == 7 else image.transpose(Image.Transpose(turn))

    def recolour(self, image: Image.Image) -> Image.Image:
        draws = self.draws
        if draws.chance(60):
            bands = image.split()
            order = _CHANNEL_ORDERS[draws.below(len(_CHANNEL_ORDERS))]
            image = Image.merge("RGB", [bands[i] for i in order])
        # 256ths, here and below: the products are exact in Pillow's single precision
        saturation = (64, 128, 160, 205, 230, 256)[draws.below(6)] / 256
        image = Image.blend(image.convert("L").convert("RGB"), image, saturation)
        invert = draws.chance(15)
        contrast, offset = draws.between(150, 380), draws.between(-50, 50)
        bend = draws.between(-200, 200)
        table = []
        values = np.arange(255, -1, -1) if invert else np.arange(256)
        for _ in range(3):
            gain, shift = draws.between(190, 320), draws.between(-25, 25)
            levels = (values * gain >> 8) + shift
            levels = np.clip(((levels - 128) * contrast >> 8) + 128 + offset, 0, 255)
            bent = levels + bend * levels * (255 - levels) // 65280
            table += np.clip(bent, 0, 255).tolist()
        return image.point(table)

    def texture(self) -> Image.Image:
        return self.recolour(self.crop())

    def defocus(self, image: Image.Image, percent: int, radius: int) -> Image.Image:
        if not self.draws.chance(percent):
            return image
        for _ in range(2):
            image = image.filter(ImageFilter.BoxBlur(self.draws.between(1, radius)))
        return image

    def ramp(self) -> Image.Image:
        corners = [self.draws.below(256) for _ in range(4)]
        image = Image.fromarray(np.array(corners, np.uint8).reshape(2, 2))
        return _resize(image, SIZE, SIZE)

    # Masks: distances to an edge, positive inside, in 256ths of a pixel, clipped to 0..255

    def blob(self, smallest: int, largest: int) -> Image.Image:
        draws = self.draws
        x, y = _X - draws.below(SIZE), _Y - draws.below(SIZE)
        radius = draws.skewed(smallest, largest)
        softness = (1, 1, 1, 2, 4, 8)[draws.below(6)]
        if draws.chance(40):
            narrow = radius * draws.between(40, 100) // 100
            slanted = x + y * draws.between(-60, 60) // 100
            inside = 65536 - (slanted * 256 // narrow) ** 2 - (y * 256 // radius) ** 2
            return _mask(inside * narrow // 512 // softness + 128)
        corners, start = draws.between(3, 7), draws.below(64)
        inside = np.full_like(x, 1 << 30)
        for corner in range(corners):
            turn = start + 64 * corner // corners + draws.between(-3, 3)
            cosine, sine = _direction(turn)
            reach = radius * draws.between(40, 100) // 100
            inside = np.minimum(inside, reach * 256 - x * cosine - y * sine)
        return _mask(inside // softness + 128)

    def bars(self) -> Image.Image:
        draws = self.draws
        coverage = np.zeros_like(_X)
        for _ in range(draws.between(1, 2)):
            (cosine, sine), period = _direction(draws.below(64)), draws.between(5, 36)
            width = period * draws.between(10, 60) // 100 + 1
            phase = abs((_X * cosine + _Y * sine) % (period * 256) - period * 128)
            coverage = np.maximum(coverage, width * 128 - phase)
        mask = _mask(coverage)
        return ImageChops.multiply(mask, self.blob(60, 220)) if draws.chance(60) else mask

    # Families

    def mixture(self) -> Image.Image:
        first, second = self.texture(), self.texture()
        kind = self.draws.below(9)
        if kind < 2:
            return first
        if kind < 4:
            return Image.blend(first, second, self.draws.between(64, 192) / 256)
        if kind < 5:
            return Image.composite(first, second, self.ramp())
        blends = (ImageChops.screen, ImageChops.multiply, ImageChops.lighter, ImageChops.difference)
        return blends[kind - 5](first, second)

    def objects(self) -> Image.Image:
        image = self.defocus(self.texture(), 50, 8)
        for _ in range(self.draws.between(1, 4)):
            thing = self.defocus(self.texture(), 15, 3)
            image = Image.composite(thing, image, self.blob(40, 180))
        return image

    def scene(self) -> Image.Image:
        return self.objects() if self.draws.chance(40) else self.mixture()

    def scene_with_bars(self) -> Image.Image:
        return Image.composite(self.texture(), self.scene(), self.bars())

    def framed(self) -> Image.Image:
        draws = self.draws
        if draws.chance(40):
            image = Image.new("RGB", (SIZE, SIZE), (draws.below(256),) * 3)
        else:
            image = self.defocus(self.texture(), 70, 8)
        width, height = draws.between(80, 210), draws.between(80, 210)
        corner = (draws.below(SIZE - width), draws.below(SIZE - height))
        image.paste(_resize(self.scene(), width, height), corner)
        return image

    def tiled(self) -> Image.Image:
        across = (2, 2, 3, 4)[self.draws.below(4)]
        side = -(-SIZE // across)
        tile = _resize(self.scene(), side, side)
        mirrored = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = Image.new("RGB", (SIZE, SIZE))
        for row in range(across):
            for column in range(across):
                piece = mirrored if column % 2 else tile
                if row % 2:
                    piece = piece.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
                image.paste(piece, (column * side, row * side))
        return image

    def grain(self, image: Image.Image) -> Image.Image:
        draws = self.draws
        if not draws.chance(25):
            return image
        strength = draws.between(8, 60)
        noise = np.frombuffer(draws.block(SIZE * SIZE), np.uint8).reshape(SIZE, SIZE)
        grain = Image.fromarray(noise).point([level * strength >> 7 for level in range(256)])
        return ImageChops.add(image, Image.merge("RGB", [grain] * 3), 1, -strength)


_FAMILIES = (
    _Painter.mixture,
    _Painter.objects,
    _Painter.framed,
    _Painter.tiled,
    _Painter.scene_with_bars,
)


@lru_cache(maxsize=256)
def painted(key: str, index: int) -> NDArray[np.uint8]:
    """Paint one image of a set, uint8 [SIZE, SIZE, 3]: the same for the same key and index."""
    painter = _Painter(_photos(), _Draws(f"{key}/{index}"))
    paint = _FAMILIES[index % len(_FAMILIES)]
    return np.asarray(painter.grain(paint(painter)))


@cache
def digest_of_photos() -> str:
    """Return what all images are made of, as a digest: another decoder gives other bytes."""
    total = hashlib.sha256()
    for photo in _photos():
        total.update(photo.image.tobytes())
    return total.hexdigest()

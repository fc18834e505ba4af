"""The secret that ownership is shown with, and its file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from pytest_watermark_guard.caching.files import write_atomically
from pytest_watermark_guard.errors import OwnershipError
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.ownership.coins import checked_text, checked_value, drawn_coins
from pytest_watermark_guard.reports.coin_draw import CoinDraw
from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.statistics.sign_flips import MOST_PAIRS

FORMAT = DocumentFormat(
    "ownership-key",
    "ownership key",
    OwnershipError,
    "get the original file, or name another one",
    version=2,
)
_BEACON = "NIST Randomness Beacon, outputValue of the first pulse after 2027-01-15 12:00 UTC"
_PUBLISHED = "example.org/commitment, 2027-01-10"
_COINS = "coins"
_TENSORS = {
    "perturbations": torch.int8,
    _COINS: torch.bool,
    "key_image": torch.uint8,
    "images": torch.uint8,
    "clean_leads": torch.float64,
}
_LATER = "images", "clean_leads"  # keys of earlier versions have none


@dataclass(frozen=True, eq=False)
class OwnershipKey:
    """Pairs of universal perturbations, and which of each pair a coin chose.

    The chosen one of each pair is embedded into an encoder, the other is its decoy. Both were made
    in the same way, so that nothing but the coin tells them apart to whoever does not have the key.

    The coins of a new key follow from its seed: good for a check of one's own releases. Whoever
    doubts it has no reason to believe that they were fair. For others, `commit` fixes all but the
    coins, and `draw_coins` takes them from a value that nobody knew then.

    Attributes
    ----------
    perturbations : Tensor of int8, shape [pairs, 2, 3, H, W]
        In steps of 1/255 of the range of a pixel; added to images of the encoder's input size,
        before normalisation, and clamped.
    coins : Tensor of bool, shape [pairs]
        True: the second of the pair was chosen. Empty between `commit` and `draw_coins`.
    key_image : Tensor of uint8, shape [3, H, W]
        The image whose embedding marked images gather around.
    epsilon : float
        Largest size of a perturbation (L∞), of pixels in [0, 1].
    preprocessing : Preprocessing
        The encoder's, with which the key was made.
    seed : int
        All random choices follow from it.
    encoder : str
        Identity of the weights below the head for which the key was made.
    images : Tensor of uint8, shape [n, 3, H, W]
        What verification asks with; none in keys of earlier versions.
    clean_leads : Tensor of float64, shape [pairs]
        How much nearer the second of each pair moves images to the key image than the first does
        before the key is embedded, in cosine. It is subtracted from what a model does, as far as it
        is found there, so that what remains is the mark's; none in keys of earlier versions.
    coin_draw : CoinDraw, optional
        What the coins follow from, if the key was committed.

    Raises
    ------
    OwnershipError
        If the parts do not fit each other.
    """

    perturbations: Tensor
    coins: Tensor
    key_image: Tensor
    epsilon: float
    preprocessing: Preprocessing
    seed: int
    encoder: str
    images: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    clean_leads: Tensor = dataclasses.field(
        default_factory=lambda: torch.empty(0, dtype=torch.float64)
    )
    coin_draw: CoinDraw | None = None

    def __post_init__(self) -> None:
        for name, dtype in _TENSORS.items():
            if getattr(self, name).dtype is not dtype:
                raise OwnershipError(
                    f"key: {name} must be {dtype}, not {getattr(self, name).dtype}"
                )
        pairs, size = len(self.coins) if self.is_drawn else self.pairs, self.preprocessing.size
        how = self.preprocessing
        if how.normalize is not None or how.geometry is not None or size is None:
            raise OwnershipError(
                "key: preprocessing must have a size, a mean and a standard deviation: a function "
                "cannot be kept in a file (pass preprocess=Preprocessing(size=..., mean=..., ...))"
            )
        if [*self.perturbations.shape] != [pairs, 2, 3, *size]:
            raise OwnershipError(
                f"key: perturbations of {pairs} pairs at {size} have shape "
                f"{[pairs, 2, 3, *size]}, not {[*self.perturbations.shape]}"
            )
        if [*self.key_image.shape] != [3, *size]:
            raise OwnershipError(f"key: key_image has shape {[*self.key_image.shape]}")
        if len(self.images) and [*self.images.shape[1:]] != [3, *size]:
            raise OwnershipError(f"key: images have shape {[*self.images.shape]}")
        leads = self.clean_leads
        if len(leads) and ([*leads.shape] != [pairs] or not leads.isfinite().all()):
            raise OwnershipError(
                f"key: clean_leads must be finite and of shape [{pairs}], and have shape "
                f"{[*leads.shape]} and {int((~leads.isfinite()).sum())} that are not finite"
            )
        if self.pairs > MOST_PAIRS:
            raise OwnershipError(f"key: {self.pairs} pairs are more than {MOST_PAIRS}")
        draw = self.coin_draw
        if draw is not None:
            checked_text("key: the beacon", draw.beacon, _BEACON)
        if draw is not None and draw.value:
            checked_text("key: published", draw.published, _PUBLISHED)
            if checked_value(draw.value) != draw.value:
                raise OwnershipError(f"key: the beacon's value is not written as {draw.value!r}")
            expected = drawn_coins(self.commitment, draw.value, self.pairs)
            if not torch.equal(self.coins, expected):
                raise OwnershipError(
                    "key: its coins are not those that follow from its commitment and the "
                    f"beacon's value {draw.value!r}"
                )
        largest = int(self.perturbations.int().abs().max()) if pairs else 0
        if not 0 < largest <= self.epsilon * 255 + 1e-6:
            raise OwnershipError(
                f"key: the largest step is {largest}/255, and epsilon is {self.epsilon:g}"
            )

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self.perturbations)

    @property
    def is_drawn(self) -> bool:
        """Whether the coins are known."""
        return self.coin_draw is None or bool(self.coin_draw.value)

    @property
    def chosen(self) -> Tensor:
        """What is embedded: int8 [pairs, 3, H, W]; `OwnershipError` before coins are drawn."""
        self.check_drawn()
        return self.perturbations[torch.arange(self.pairs), self.coins.long()]

    @property
    def decoys(self) -> Tensor:
        """What is not: int8 [pairs, 3, H, W]; `OwnershipError` before coins are drawn."""
        self.check_drawn()
        return self.perturbations[torch.arange(self.pairs), (~self.coins).long()]

    def expected_leads(self, pairs: range) -> Tensor:
        """Return how far the chosen ones of pairs lead without the mark, in cosine: [pairs]."""
        if not len(self.clean_leads):
            return torch.zeros(len(pairs), dtype=torch.float64)
        which = torch.tensor(pairs)
        return self.clean_leads[which] * (self.coins[which].double() * 2 - 1)

    def check_drawn(self) -> None:
        """Raise `OwnershipError` while the coins are not known."""
        if not self.is_drawn:
            assert self.coin_draw is not None
            raise OwnershipError(
                f"the key was committed, and its coins are not drawn yet: once "
                f"{self.coin_draw.beacon!r} is out, use key.draw_coins(value, published=...)"
            )

    @property
    def hash(self) -> str:
        """SHA-256 of everything in the key, hexadecimal."""
        return _digest(self._fields(), [getattr(self, name) for name in _TENSORS])

    @property
    def commitment(self) -> str:
        """SHA-256 of everything but the coins, and of the beacon and a nonce, hexadecimal.

        Raises
        ------
        OwnershipError
            If the key was not committed.
        """
        if self.coin_draw is None:
            raise OwnershipError("the key was not committed: use key.commit(beacon=...)")
        fields = self._fields()
        fields["coin_draw"] = {name: fields["coin_draw"][name] for name in ("beacon", "nonce")}
        tensors = {name: getattr(self, name) for name in _TENSORS if name != _COINS}
        if not len(self.clean_leads):
            del tensors["clean_leads"]  # commitments of earlier versions are as they were
        # Or bytes could be told as another number of pairs or images.
        fields["shapes"] = {name: [*tensor.shape] for name, tensor in tensors.items()}
        return _digest(fields, tensors.values())

    def commit(self, beacon: str) -> OwnershipKey:
        """Fix everything but the coins; publish the `commitment` of what is returned, and save it.

        Parameters
        ----------
        beacon : str
            The public value that will decide the coins, so that everyone finds it and nobody can
            pick another one: its source, which of its fields, and the first one after a date that
            is later than the publication. A pulse of a randomness beacon, the hash of a block, or
            a number that the other party sends after it has the commitment.

        Returns
        -------
        OwnershipKey
            With a new nonce, and without coins.

        Raises
        ------
        OwnershipError
            If `beacon` says nothing, the key is committed already, or holds no images (keys of
            earlier versions: images that are picked later decide the result too).
        """
        beacon = checked_text("beacon", beacon, _BEACON)
        if self.coin_draw is not None:
            raise OwnershipError(
                f"the key is committed already, for {self.coin_draw.beacon!r}: who commits twice "
                "can choose between two draws; make a new key"
            )
        if not len(self.images):
            raise OwnershipError(
                "the key holds no images for verification, so they cannot be committed: make a "
                "new key with generate_key"
            )
        draw = CoinDraw(beacon=beacon, nonce=secrets.token_hex(16))
        return dataclasses.replace(self, coins=self.coins[:0], coin_draw=draw)

    def draw_coins(self, value: str, published: str) -> OwnershipKey:
        """Take the coins from the beacon's value, when it is out; then embed the key.

        Parameters
        ----------
        value : str
            What the beacon gave: in ASCII; spaces do not count, nor does case.
        published : str
            Where and when the commitment was published, for the report.

        Returns
        -------
        OwnershipKey

        Raises
        ------
        OwnershipError
            If the key was not committed, has its coins, or the value could have been guessed.
        """
        published = checked_text("published", published, _PUBLISHED)
        commitment = self.commitment
        assert self.coin_draw is not None
        if self.coin_draw.value:
            raise OwnershipError(
                f"the coins are drawn already, from {self.coin_draw.value!r}: a commitment is good "
                "for one draw"
            )
        value = checked_value(value)
        draw = dataclasses.replace(self.coin_draw, value=value, published=published)
        coins = drawn_coins(commitment, value, self.pairs)
        return dataclasses.replace(self, coins=coins, coin_draw=draw)

    def _fields(self) -> dict[str, Any]:
        preprocessing = dataclasses.asdict(self.preprocessing)
        del preprocessing["normalize"], preprocessing["geometry"]
        # Keys that are older than these fields have the same hash as before.
        for name in ("keep_exact_size", "crop_floor"):
            if name not in self.preprocessing.fitting:
                del preprocessing[name]
        fields = {
            "epsilon": self.epsilon,
            "preprocessing": preprocessing,
            "seed": str(self.seed),
            "encoder": self.encoder,
        }
        if self.coin_draw is not None:
            fields["coin_draw"] = dataclasses.asdict(self.coin_draw)
        return fields

    def save(self, path: str | Path) -> None:
        """Write the key to a safetensors file.

        It is a secret: whoever has it can remove the mark, or put it into another model.
        """
        metadata = {
            **{name: str(value) for name, value in FORMAT.head.items()},
            "key": _canonical(self._fields()),
            "hash": self.hash,
        }
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        data = serialize(tensors, metadata)
        write_atomically(path, lambda file: file.write(data))

    @classmethod
    def load(cls, path: str | Path, published: str | None = None) -> OwnershipKey:
        """Read a key that `save` wrote; nothing in it can run.

        Parameters
        ----------
        path : path
        published : str, optional
            The `commitment` that was published, or the `hash` of a key without one; or its
            beginning (at least 16 digits). The file itself only shows that it was not damaged:
            whoever wrote another one has its hash in it too.

        Raises
        ------
        OwnershipError
            If the file cannot be read, holds something else, is not what `save` wrote (its content
            must have the hash that it names), or is not the key that was published.
        """
        with FORMAT.reading(path):
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                # Metadata are texts.
                version = int(metadata.get("format_version", 0))
                FORMAT.check({**metadata, "format_version": version})
                held = set(file.keys()) | {*_TENSORS}.difference(_LATER)
                tensors = {name: file.get_tensor(name) for name in _TENSORS if name in held}
            fields = json.loads(metadata["key"])
            preprocessing: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in fields["preprocessing"].items()
            }
            key = cls(
                **tensors,
                epsilon=float(fields["epsilon"]),
                preprocessing=Preprocessing(**preprocessing),
                seed=int(fields["seed"]),
                encoder=str(fields["encoder"]),
                coin_draw=CoinDraw(**fields["coin_draw"]) if "coin_draw" in fields else None,
            )
            stated = metadata["hash"]
        where = str(path)
        if key.hash != stated:
            raise OwnershipError(
                f"{where!r} was changed after it was written: its content has the hash "
                f"{key.hash[:16]}..., and it names {stated[:16]}...; get the original file"
            )
        public = stated if key.coin_draw is None else key.commitment
        begins = None if published is None else str(published).strip().lower()
        if begins is not None and (len(begins) < 16 or not public.startswith(begins)):
            what = "hash" if key.coin_draw is None else "commitment"
            raise OwnershipError(
                f"{where!r} is not the key that was published: its {what} is {public}, and not "
                f"{published!r} (give at least 16 digits)"
            )
        return key


def _digest(fields: dict[str, Any], tensors: Iterable[Tensor]) -> str:
    total = hashlib.sha256(_canonical(fields).encode())
    for tensor in tensors:
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _canonical(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, allow_nan=False)

"""What the coins of a key follow from, and how to say it."""

from __future__ import annotations

from dataclasses import dataclass

UNPROVEN = (
    "This is no evidence for anyone else: nothing shows that the coins were fair, nor that the "
    "patterns and the images were fixed before the model was known. A key that was committed "
    "before its coins were drawn can show both."
)
"""Of a key whose coins follow from nothing that others can check."""


@dataclass(frozen=True)
class CoinDraw:
    """What the coins of a committed key follow from.

    Attributes
    ----------
    beacon : str
        The public value that decides, fixed in the commitment: its source and date.
    nonce : str
        Random digits that keep the commitment from telling what it is of; empty in reports.
    value : str
        What the beacon gave; empty before.
    published : str
        Where and when the commitment was published, as the key's owner says.
    """

    beacon: str
    nonce: str
    value: str = ""
    published: str = ""

    def sentences(self, commitment: str) -> str:
        """Say what was fixed by the commitment, and what came after it."""
        return (
            f"All patterns and images of the key were fixed by the commitment {commitment}, "
            f"published: {self.published}. The coins follow from it and from a later public "
            f"value, {self.beacon}: {self.value}."
        )

"""The choices of options of a model by name; importing this module is fast, so that options are checked before torch.

| option         | choices                                                                        |
|----------------|--------------------------------------------------------------------------------|
| state encoding | numbers (conditioning values), text (in the prompt, as pi0.5)                  |
| image mode     | native (the image's shape), stretch, pad (with bars), crop (the centre)        |
| statistics     | keep (the checkpoint's), new (of the new data)    , merge (both together)   |
"""

from __future__ import annotations

from vla.errors import InputError

STATE_ENCODINGS = ("numbers", "text")
IMAGE_MODES = ("native", "stretch", "pad", "crop")
STATISTICS = KEEP, NEW, MERGE = "keep", "new", "merge"


def check_state_encoding(choice: str | None) -> None:
    """Raises InputError for an unknown encoding of the state; None: that of the policy in the backbone."""
    if choice is not None and choice not in STATE_ENCODINGS:
        raise InputError(f"state_encoding is {' or '.join(STATE_ENCODINGS)}, not {choice}")


def check_image_mode(choice: str | None) -> None:
    """Raises InputError for an unknown mode of the camera images; None: as the backbone was trained."""
    if choice is not None and choice not in IMAGE_MODES:
        raise InputError(f"images is one of {', '.join(IMAGE_MODES)}, not {choice}")


def check_statistics(choice: str | None) -> None:
    """Raises InputError for unknown statistics of a policy whose training continues; None: keep."""
    if choice is not None and choice not in STATISTICS:
        raise InputError(f"statistics are {KEEP}, {NEW} or {MERGE}, not {choice!r}")

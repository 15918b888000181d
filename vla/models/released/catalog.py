"""The catalog of released robot policies, which `vla models` prints below the vision-language models."""

from __future__ import annotations

from dataclasses import dataclass

LEROBOT = (
    "chunk, loss and gradients equal to those of LeRobot's class from a raw observation to robot units, with images of "
    "640 x 480 pixels and with missing cameras, and the export read back by LeRobot; on small random weights, not on "
    "released weights"
)
OPENVLA = (
    "actions from a raw observation to robot units, and the loss, equal to a plain reading of the published layout; on "
    "small random weights, not on released weights"
)


@dataclass(frozen=True)
class Released:
    """A released robot policy.

    Attributes:
        checkpoint: its id on the hub.
        parameters: number of parameters that are used.
        trained_on: the data of its pretraining.
        action: its action space.
        horizon: number of steps of a chunk.
        cameras: number of cameras in its pretraining.
        licence: of code and weights.
        test: file of tests/ that verifies it.
        verified: what this test shows.
    """

    name: str
    checkpoint: str
    parameters: float
    trained_on: str
    action: str
    horizon: int
    cameras: str
    licence: str
    test: str = "test_released_policies.py"
    verified: str = LEROBOT


RELEASED = (
    Released(
        "pi0",
        "lerobot/pi0_base",
        3.23e9,
        "Physical Intelligence's robots (7 kinds) and Open X-Embodiment",
        "up to 32 components, mean-std",
        50,
        "1 to 3",
        "Apache-2.0, weights under Gemma's terms",
    ),
    Released(
        "pi0.5",
        "lerobot/pi05_base",
        3.35e9,
        "as pi0, with mobile manipulators and web data",
        "up to 32 components, quantiles",
        50,
        "1 to 3",
        "Apache-2.0, weights under Gemma's terms",
    ),
    Released(
        "pi0-fast",
        "lerobot/pi0fast-base",
        3.45e9,
        "as pi0",
        "FAST tokens of PaliGemma's vocabulary, mean-std",
        50,
        "1 to 3",
        "Apache-2.0, weights under Gemma's terms",
        "test_pi0_fast.py",
        LEROBOT,
    ),
    Released(
        "smolvla",
        "lerobot/smolvla_base",
        0.45e9,
        "community datasets of SO-100 and SO-101 arms",
        "up to 32 components, mean-std",
        50,
        "1 to 3",
        "Apache-2.0",
    ),
    Released(
        "evo1",
        "zuoxingdong/evo1_libero",
        0.775e9,
        "LIBERO (fine-tuned in LeRobot; there is no base)",
        "up to 24 components, min-max",
        50,
        "1 to 3",
        "Apache-2.0, weights by their card",
        "test_evo1.py",
    ),
    Released(
        "openvla",
        "openvla/openvla-7b",
        7.54e9,
        "Open X-Embodiment",
        "7 end-effector deltas in 256 bins, quantiles by dataset (?unnorm_key=)",
        1,
        "1",
        "MIT, weights under Llama 2's licence",
        "test_openvla.py",
        OPENVLA,
    ),
    Released(
        "openvla-oft",
        "moojink/openvla-7b-oft-finetuned-libero-spatial",
        7.7e9,
        "OpenVLA, fine-tuned on LIBERO (also ALOHA, Bridge)",
        "7 end-effector deltas or 14 joints, L1 regression",
        8,
        "2",
        "MIT, weights under Llama 2's licence",
        "test_openvla.py",
        OPENVLA,
    ),
)

"""`vla probe`: a table, figures and a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla.commands import cli
from vla.evaluation.vlm.answerer import BackboneAnswerer
from vla.evaluation.vlm.probes.registry import PROBES, select_probes
from vla.models.vla import VLA


@pytest.fixture
def checkpoint(make_model: Callable[..., VLA], tmp_path: Path) -> str:
    make_model(robot=False).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_every_probe_has_its_table_and_its_section(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "figures/probe.json", tmp_path / "out"
    assert cli.main(["probe", f"policy={checkpoint}", "n=3", f"out={out}", f"json={file}"]) == 0
    printed, page = capsys.readouterr().out, (out / "probes.html").read_text()
    figures = json.loads(file.read_text())
    assert list(figures["probes"]) == list(PROBES) and figures["policy"] == checkpoint
    for name, found in figures["probes"].items():
        assert f"\n{name} " in f"\n{printed}" and f"<h2>{name}</h2>" in page
        assert found["blank"].keys() == found["scores"].keys()
        for score in found["scores"].values():
            assert np.isfinite([score["value"], *score["ci95"]]).all()
    assert page.count("<svg") == 1 + 3 + 1 + 3  # categories and levels
    assert "Worst" in page and "data:image/png" in page


def test_mistakes_are_named_before_a_model_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        (["probes=[pope]"], "unknown probe 'pope': choose from pope-sim"),
        (["n=1"], "2 scenes or more"),
        (["seed=-1"], "seed of 0 or more"),
    ):
        assert cli.main(["probe", "policy=nano", *arguments]) == 2
        assert reason in capsys.readouterr().err


def test_a_hosted_model_is_spared_the_modality_gap(make_model: Callable[..., VLA]) -> None:
    def answers(questions: object, images: object, tokens: int, role: str) -> list[str]:
        return []

    assert set(PROBES) - set(select_probes(None, answers)) == {"modality-gap"}
    assert set(select_probes(None, BackboneAnswerer(make_model(robot=False)))) == set(PROBES)


def test_embeddings_do_not_depend_on_their_batch(make_model: Callable[..., VLA]) -> None:
    answerer = BackboneAnswerer(make_model(robot=False))
    rng = np.random.default_rng(0)
    images = [{"front": rng.integers(0, 255, (40, 40, 3), np.uint8)} for _ in range(3)]
    texts = ["a red cube", "a ball", "a green cone and a blue ball"]
    x, y = answerer.embed(images, texts)
    for i in range(3):
        one, other = answerer.embed(images[i : i + 1], texts[i : i + 1])
        np.testing.assert_allclose(np.stack([one[0], other[0]]), np.stack([x[i], y[i]]), atol=1e-4)
    assert not np.allclose(x[0], x[1]) and not np.allclose(y[0], y[1])

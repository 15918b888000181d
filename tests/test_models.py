"""The catalog of families, its configuration files, and `vla models`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from released_checkpoints import PROCESSORS
from test_internvl import FAMILIES as INTERNVL
from test_original_families import FAMILIES as ORIGINALS

from vla.commands import cli
from vla.errors import InputError
from vla.models.backbones.catalog import CATALOG, CHECKS, PARAMETERS, Family, family
from vla.models.backbones.hosted import Hosted, Price
from vla.models.chat import ChatFormat
from vla.models.preprocessing.markup import Markup

ROOT = Path(__file__).resolve().parents[1]
ROWS = pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)


def test_every_family_has_its_file_and_every_file_its_family() -> None:
    names = [row.name for row in CATALOG]
    assert len(set(names)) == len(names)
    assert {file.stem for file in (ROOT / "configs/families").iterdir()} == set(names)


@ROWS
def test_configuration_says_what_loading_needs(row: Family) -> None:
    assert (ROOT / row.config_path).is_file()
    config = row.config()
    assert config.pop("family") == row.name
    if row.role == "hosted":
        model = Hosted(config.pop("model"), price=Price(**config.pop("price")), **config)
        assert model.cost == 0.0
        return
    if row.role == "backbone" and row.name != "nano":
        ChatFormat(**config.pop("chat"))
        ChatFormat(**config.pop("base", {}))
        Markup(**config.pop("markup", {}))
        assert isinstance(config.pop("system", ""), str)
    images = config.pop("images", None)
    assert images is None or len(images["image_mean"]) == len(images["image_std"]) == 3
    assert set(config) in ({"checkpoint", "image_size", "attention"}, {"checkpoint", "attention"})
    assert config["attention"] in ("sdpa", "eager")
    assert images or row.name == "composed" or config["image_size"] % 4 == 0 or row.name == "align"


@ROWS
def test_what_is_verified_is_by_a_test_that_there_is(row: Family) -> None:
    assert bool(row.test) == bool(row.verified)
    if row.test:
        assert (ROOT / "tests" / row.test).is_file()


def test_what_is_equal_to_the_original_is_what_is_tested_so() -> None:
    assert {row.name for row in CATALOG if row.checked == CHECKS} == {
        *PROCESSORS,
        *ORIGINALS,
        *INTERNVL,
        "molmo",
        "molmoe",
    }


def test_the_table_has_a_line_for_each_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["family", "role", "connector"]
    assert [line.split()[0] for line in lines[: len(CATALOG)]] == [row.name for row in CATALOG]
    qwen = next(line for line in lines if line.startswith("qwen2.5-vl"))
    assert "Qwen/Qwen2.5-VL-3B-Instruct" in qwen and "preprocessing, prompt, logits" in qwen
    starts = {line.index(f"  {row.role}") for line, row in zip(lines, CATALOG, strict=False)}
    assert len(starts) == 1  # columns are straight


@ROWS
def test_one_family_shows_everything_known_of_it(row: Family, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", f"family={row.name}"]) == 0
    shown = capsys.readouterr().out
    wanted = [row.title, row.connector, row.config_path, row.source, row.verified or "nothing yet", *row.freezes]
    assert all(text in shown for text in wanted)
    assert all(f"{key}:" in shown for key in row.config())
    assert f"load       {row.load}" in shown


def test_unknown_family_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "family=gpt-9"]) == 2
    assert "there is no family 'gpt-9': choose of nano, composed" in capsys.readouterr().err
    with pytest.raises(InputError, match="gpt-9"):
        family("gpt-9")


def test_the_table_needs_no_heavy_import() -> None:
    code = "import sys, vla.commands.models as m; m.models(family=None); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_sizes_and_memory_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    sized = {row.name for row in CATALOG if row.role != "hosted" and row.name != "composed"}
    assert PARAMETERS.keys() == sized
    assert cli.main(["models"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("paligemma ")]
    assert "2.9 B" in line and "5.8 GB" in line
    assert cli.main(["models", "paligemma"]) == 0
    assert "5.8 GB to run in bf16; 58 GB to train all weights" in capsys.readouterr().out

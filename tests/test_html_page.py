"""Parts of the report pages."""

from __future__ import annotations

import pytest

from vla.common.html_page import NUMBER, html_table


@pytest.mark.parametrize(
    "cell", ["0", "-1.5", "+3", "2.5\N{NO-BREAK SPACE}ms", "98 %", "1e-5", "+3 [-1, +7]", "0.5 – 0.6", "", "–"]
)
def test_a_number_may_have_a_unit_and_an_interval(cell: str) -> None:
    assert NUMBER.fullmatch(cell)


@pytest.mark.parametrize("cell", ["front", "3 cubes", "done", "v2"])
def test_text_is_no_number(cell: str) -> None:
    assert not NUMBER.fullmatch(cell)


def test_columns_of_numbers_are_marked() -> None:
    table = html_table(("name", "value", "note"), [("a", "1.0", "2"), ("b", "2.0", "of two")])
    assert '<th>name</th><th class="number">value</th><th>note</th>' in table
    assert table.count('<td class="number">') == 2
    assert "number" not in html_table(("a", "b"), [])

"""The README's table of figures, and what writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import table
from tests.bench.figures import Figure

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_has_all_figures() -> None:
    table.check(README)
    text = README.read_text()
    for asked, name in table.ASKED.values():
        assert f"| {name} | " in text
        assert f" {asked:.3g} |" in text


def test_the_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    table.write(readme, {"one_way": Figure(1500, 100), "garbage_bytes": Figure(4, 5, "%")})
    text = readme.read_text()
    assert text.startswith("before\n<!-- figures -->\nMeasured on ")
    assert "| messages that want no answer; of the same | 1,500 | 100 | 15.00 | ≥ 14 |\n" in text
    assert "| 4.00 % | 5.00 % | 0.80 | ≤ 1 |\n<!-- end of figures -->\nafter\n" in text
    assert "old" not in text


@pytest.mark.parametrize("text", ["", "<!-- figures -->\n", "<!-- end of figures -->\n"])
def test_a_file_without_a_place_for_the_table_is_refused(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    for path in (readme, tmp_path / "nothing"):
        with pytest.raises(SystemExit, match="has no place for the figures"):
            table.check(path)

"""Pages say which tests hold them: these are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_are_there(page):
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert named or page.name != "coming-from.md"
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), f"{page.name} names {file}::{test}"


def test_each_table_of_habits_names_its_tests():
    page = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    habits, _ = page.split("\n## What usually goes wrong")
    tables = re.split(r"\n(?=\| [^\n]* \|\n\| ---)", habits)[1:]
    assert tables
    for table in tables:
        assert NAMED.search(table.partition("\nTested by ")[2]), table.splitlines()[0]

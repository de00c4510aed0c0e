from __future__ import annotations

import re
from pathlib import Path

from calls.settings import PREFIX, Settings

README = Path(__file__).parent.parent / "README.md"
TELEPHONY = README.parent / "docs" / "telephony.md"


def settings_table() -> str:
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_the_readme_lists_every_setting_with_its_default() -> None:
    text = README.read_text()
    assert text.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0] == settings_table()


def test_each_line_of_the_telephony_matrix_names_tests_that_there_are() -> None:
    matrix = TELEPHONY.read_text().split("## What is tested, with whom")[1].split("## RFC 4475")[0]
    rows = [line for line in matrix.splitlines() if line.startswith("| ") and not line.startswith("| feature ")]
    assert len(rows) > 40
    for row in rows:
        file = ""
        tests = re.findall(r"`([\w/]*(?:\.py)?)::(test_\w+)`", row.split("|")[4])
        assert tests, row
        for named, test in tests:
            file = named or file
            assert re.search(rf"^(async )?def {test}\(", (Path(__file__).parent / file).read_text(), re.MULTILINE), row

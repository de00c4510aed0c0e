from __future__ import annotations

from pathlib import Path

from calls.settings import PREFIX, Settings

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_the_readme_lists_every_setting_with_its_default() -> None:
    text = README.read_text()
    assert text.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0] == settings_table()

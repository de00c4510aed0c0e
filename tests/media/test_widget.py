from __future__ import annotations

import re
from pathlib import Path

from admin import web_files

ROOT = Path(__file__).parents[2]
WIDGET = web_files.script().decode()


def test_the_widget_is_one_small_file() -> None:
    assert len(WIDGET.encode()) < 25_000
    assert not re.search(r"^import ", WIDGET, re.MULTILINE)
    parts = {path.stem for path in (web_files.WIDGET / "tandem-call").iterdir()}
    assert parts == set(web_files.PARTS), "each in it once"


def test_the_guide_lists_every_text_property_and_part() -> None:
    guide = (ROOT / "docs/widget.md").read_text()
    texts = re.search(r"const TEXTS = \{(.*?)\n\};", WIDGET, re.DOTALL)
    assert texts is not None
    names = re.findall(r"(?:^|, )\s*'?([\w-]+)'?: '", texts[1], re.MULTILINE)
    assert len(names) > 30
    found = {f"text-{name}" for name in names}
    found |= set(re.findall(r"--tandem-[\w-]+", WIDGET))
    found |= set(re.findall(r"(?:part|button)\('([\w-]+)'", WIDGET)) | set(re.findall(r"given\('([\w-]+)'\)", WIDGET))
    missing = sorted(name for name in found if f"`{name}`" not in guide)
    assert not missing

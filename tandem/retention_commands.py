"""`tandem retention …`: how long calls are kept, what is redacted in them; carried out at once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from admin.retaining import Retaining
from admin.service import NotAllowed
from calls.retention import RETENTION
from calls.settings import Settings
from media.retention import Keeping, Report
from tandem.agent_commands import meant, read_json, this_user
from tandem.call_commands import open_store
from tandem.errors import told_in_one_line


def show_rules(settings: Settings) -> None:
    async def run() -> None:
        async with open_store(settings) as store:
            rules = (await Retaining(store).rules(this_user())).rules
            print(json.dumps(RETENTION.dump_python(rules, mode="json"), indent=2, ensure_ascii=False))

    asyncio.run(run())


def set_rules(settings: Settings, file: Path) -> None:
    rules = meant(RETENTION, read_json(file))

    async def run() -> int:
        async with open_store(settings) as store:
            return (await Retaining(store).save(this_user(), rules)).number

    with told_in_one_line(NotAllowed):
        print(f"version {asyncio.run(run())}")


def run_rules(settings: Settings, dry_run: bool) -> None:
    """Once, and tell what was done, or would be."""
    async def run() -> Report:
        async with open_store(settings) as store:
            return await Keeping(store, settings.data_dir).run(dry_run=dry_run, who=this_user().who)

    report = asyncio.run(run())
    would = "would be " if dry_run else ""
    print(f"calls {would}erased: {report.calls_erased}")
    print(f"recordings {would}removed: {report.recordings_removed}")
    print(f"token logs of this machine {would}removed: {report.token_logs_removed}")
    found = ", ".join(f"{name}: {count}" for name, count in sorted(report.found.items()))
    print(f"calls {would}redacted: {report.calls_redacted}{f' ({found})' if found else ''}")
    if not dry_run:
        print(f"recordings silenced in part: {report.recordings_silenced}")
    for line in report.failed:
        print(f"not now: {line}")

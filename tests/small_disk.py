"""Disks that a test can fill: each a tmpfs, which only the processes see that are started on it.

It takes no rights but those that a user has over their own namespaces (or root's, where there are those).
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

FILLING = "filling"  # the file that takes all the room


def on_small_disks(disks: Mapping[Path, int]) -> list[str]:
    """The command that goes before one for which these folders, which are made, lie on disks of so many MB. From
    outside they are reached through its /proc/PID/root. Skips the test where it can't be done."""
    if not _can_mount():
        pytest.skip("nobody may mount a disk of their own here")
    for folder in disks:
        folder.mkdir(mode=0o700, parents=True)
    return _mounting(" && ".join(f"mount -t tmpfs -o size={mb}m,mode=0700 small '{folder}'"
                                 for folder, mb in disks.items()))


def _mounting(commands: str) -> list[str]:
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        return ["unshare", "--mount", "sh", "-c", f'{commands} && exec "$@"', "sh"]
    back = f"unshare --user --map-user={user} --map-group={group}"
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{commands} && exec {back} "$@"', "sh"]


@functools.cache
def _can_mount() -> bool:
    command = [*_mounting("mount -t tmpfs -o size=1m small /mnt"), "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def no_file_grows_past(size: int) -> Iterator[None]:
    """In this process: writes beyond so many bytes fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(folder: Path) -> None:
    """To the last byte."""
    with (folder / FILLING).open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:  # no space left
                continue


def make_room(folder: Path) -> None:
    (folder / FILLING).unlink()

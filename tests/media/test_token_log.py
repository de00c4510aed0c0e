from __future__ import annotations

from pathlib import Path

import pytest
from call_fakes import LAYOUT, step
from small_disk import no_file_grows_past

from media.token_log import TokenLog, TokenLogError, read_token_log, token_log_path


def logged(first_k: int, last_k: int, heard_k: int, kept: int = 100) -> TokenLog:
    token_log = TokenLog(LAYOUT, kept)
    for k in range(first_k, last_k + 1):
        token_log.add(step(k))
        token_log.heard(min(k, heard_k))
    return token_log


def test_what_is_written_reads_back_step_by_step(tmp_path: Path) -> None:
    path = token_log_path(tmp_path, "call-1")
    logged(3, 9, 9).write(path, "call-1", "random", "2026-01-02T03:04:05+00:00")
    header, steps = read_token_log(path)
    assert (header.call, header.model, header.answered_at) == ("call-1", "random", "2026-01-02T03:04:05+00:00")
    assert (header.first_k, header.steps) == (3, 7)
    assert list(steps) == [step(k) for k in range(3, 10)]
    assert [item.name for item in path.parent.iterdir()] == ["call-1.tokens"]


def test_what_cant_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = token_log_path(tmp_path, "call-1")
    with no_file_grows_past(100), pytest.raises(OSError, match="File too large"):
        logged(3, 9, 9).write(path, "call-1", "random", "2026-01-02T03:04:05+00:00")
    assert not list(path.parent.iterdir())


def test_steps_that_the_caller_has_not_heard_are_not_in_it() -> None:
    assert [item.k for item in logged(0, 9, 4).steps()] == [0, 1, 2, 3, 4]


def test_a_step_between_heard_ones_is_kept_for_the_model_remembers_it() -> None:
    token_log = TokenLog(LAYOUT, 100)
    for k in range(6):
        token_log.add(step(k))
    token_log.heard(2)
    token_log.heard(5)
    assert len(token_log) == 6


def test_it_never_grows_past_the_context() -> None:
    token_log = logged(0, 499, 499, kept=50)
    assert [item.k for item in token_log.steps()] == list(range(450, 500))


@pytest.mark.parametrize("content", [b"", b"nothing\n", b'{"call": "x"}\n'])
def test_a_file_that_is_no_token_log_gets_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tokens"
    path.write_bytes(content)
    with pytest.raises(TokenLogError, match="doesn't begin with"):
        read_token_log(path)


def test_a_truncated_file_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.tokens"
    logged(0, 3, 3).write(path, "x", "m", "now")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TokenLogError, match="its header says"):
        read_token_log(path)
    with pytest.raises(TokenLogError, match="can't be read"):
        read_token_log(tmp_path / "none.tokens")

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from redis import Redis
from redis.exceptions import RedisError

from tandem import embedded, server_process
from tandem.embedded import EmbeddedError, embedded_postgres, embedded_redis, running_postgres
from tandem.server_process import ServerProcess, running

RUN_BOTH = """
import sys, time
from pathlib import Path
from tandem.embedded import embedded_postgres, embedded_redis
with embedded_redis(Path(sys.argv[1])), embedded_postgres(Path(sys.argv[1]), durable=False):
    print("up", flush=True)
    time.sleep(600)
"""


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never: {what}")
        time.sleep(0.01)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a database made in it: making one is what costs time."""
    path = tmp_path_factory.mktemp("kept") / "data"
    with embedded_postgres(path, durable=False):
        return path


@pytest.fixture
def other_process(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another Tandem that runs both servers on the data folder."""
    with subprocess.Popen([sys.executable, "-c", RUN_BOTH, str(data_dir)], stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()
    until(lambda: not servers_on(data_dir), "its servers end")


def servers_on(data_dir: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() in ("redis-server", "postgres") and str(data_dir) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def answer(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT 42").fetchone()
    assert row is not None
    return int(row[0])


def test_what_was_written_is_there_after_a_restart(data_dir: Path) -> None:
    for start in (1, 2):
        with embedded_redis(data_dir) as redis_url, embedded_postgres(data_dir, durable=False) as database_url:
            with Redis.from_url(redis_url) as redis:
                assert redis.incr("starts") == start
            with psycopg.connect(database_url) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS starts (n int)")
                connection.execute("INSERT INTO starts VALUES (1)")
                assert connection.execute("SELECT count(*) FROM starts").fetchone() == (start,)
    assert servers_on(data_dir) == []


def test_nobody_else_can_reach_them(data_dir: Path) -> None:
    with embedded_redis(data_dir), embedded_postgres(data_dir, durable=False):
        assert len(servers_on(data_dir)) == 2
        for server in servers_on(data_dir):
            assert [each for each in server.net_connections() if each.status == psutil.CONN_LISTEN] == []
            assert server.name() == "redis-server" or server.uids().effective != 0
        for folder in ("redis", "redis/socket", "postgres", "postgres/socket", "postgres/cluster"):
            assert stat.S_IMODE((data_dir / folder).stat().st_mode) == 0o700, folder
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700


def test_a_ctrl_c_in_the_terminal_isnt_for_them(data_dir: Path) -> None:
    with embedded_redis(data_dir), embedded_postgres(data_dir, durable=False):
        for server in servers_on(data_dir):
            assert os.getpgid(server.pid) == os.getsid(server.pid) == server.pid


def test_a_second_tandem_is_told_who_uses_the_folder(data_dir: Path, other_process: subprocess.Popen[str]) -> None:
    for start in (embedded_redis, embedded_postgres):
        with pytest.raises(EmbeddedError) as raised, start(data_dir):
            pass
        assert str(raised.value) == (f"{data_dir}: another Tandem (process {other_process.pid}) already uses this "
                                     "data folder")
    assert answer(running_postgres(data_dir)) == 42


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_servers_of_a_killed_tandem_end_and_the_next_one_starts_at_once(
        data_dir: Path, other_process: subprocess.Popen[str], number: signal.Signals) -> None:
    other_process.send_signal(number)
    other_process.wait()
    with embedded_redis(data_dir) as redis_url, embedded_postgres(data_dir, durable=False) as database_url:
        with Redis.from_url(redis_url) as redis:
            assert redis.ping()
        assert answer(database_url) == 42


def test_without_a_leash_servers_that_were_left_behind_are_stopped_first(
        data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", RUN_BOTH.replace("from tandem.embedded", (
            "from tandem import embedded; embedded.leash = lambda signal: []\nfrom tandem.embedded")), str(data_dir)],
            stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "up\n"
        left = servers_on(data_dir)
        killed.kill()
    assert all(server.is_running() for server in left)
    with embedded_redis(data_dir), embedded_postgres(data_dir, durable=False) as database_url:
        assert not any(server.is_running() and server.status() != psutil.STATUS_ZOMBIE for server in left)
        assert answer(database_url) == 42


def test_files_of_servers_that_were_killed_dont_hinder_the_next_start(
        data_dir: Path, request: pytest.FixtureRequest) -> None:
    """Though the process number in them is another program's of the same user by now."""
    database_socket = data_dir / "postgres" / "socket" / ".s.PGSQL.5432"
    for path in (database_socket, data_dir / "redis" / "socket" / "redis.sock"):
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    cluster = data_dir / "postgres" / "cluster"
    owner = cluster.stat().st_uid
    another = subprocess.Popen(["sleep", "600"], user=owner if os.geteuid() == 0 else None)
    request.addfinalizer(another.wait)
    request.addfinalizer(another.kill)
    for left in (cluster / "postmaster.pid", database_socket.with_name(".s.PGSQL.5432.lock")):
        left.write_text(f"{another.pid}\n{cluster}\n1\n5432\n{database_socket.parent}\n\n")
        os.chown(left, owner, -1)
    with embedded_redis(data_dir) as redis_url, embedded_postgres(data_dir, durable=False) as database_url:
        with Redis.from_url(redis_url) as redis:
            assert redis.ping()
        assert answer(database_url) == 42


def test_a_server_that_dies_is_started_again_with_its_data(data_dir: Path) -> None:
    with embedded_redis(data_dir) as redis_url, embedded_postgres(data_dir, durable=False) as database_url:
        with Redis.from_url(redis_url) as redis:
            redis.set("kept", "yes")
            redis.execute_command("CONFIG", "SET", "appendfsync", "always")
            redis.set("kept", "always")
        killed = servers_on(data_dir)
        for server in killed:
            server.kill()

        def both_answer() -> bool:
            try:
                with Redis.from_url(redis_url) as redis:
                    return redis.get("kept") == b"always" and answer(database_url) == 42
            except (RedisError, psycopg.Error):
                return False

        until(both_answer, "both are up again")
        assert {server.pid for server in servers_on(data_dir)}.isdisjoint({server.pid for server in killed})
    assert servers_on(data_dir) == []


def test_a_folder_too_deep_for_sockets_still_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with embedded_redis(deep) as url:
        with Redis.from_url(url) as redis:
            assert redis.set("a", "b")
        place = Path(redis.connection_pool.connection_kwargs["path"]).parent
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert deep not in place.parents
    assert (deep / "redis" / "appendonly.aof").exists()
    assert not place.exists()


def test_a_socket_folder_that_someone_else_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    monkeypatch.setattr(embedded.tempfile, "gettempdir", lambda: str(tmp_path))
    place = embedded._socket_folder(deep / "redis", embedded.REDIS_SOCKET)
    place.symlink_to(tmp_path)
    with pytest.raises(EmbeddedError, match="belongs to another user"), embedded_redis(deep):
        pass


def test_where_no_short_enough_path_exists_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    monkeypatch.setattr(embedded.tempfile, "gettempdir", lambda: str(tmp_path / ("t" * 100)))
    with pytest.raises(EmbeddedError, match=r"too long for a socket .* choose a shorter TANDEM_DATA_DIR"), (
            embedded_redis(deep)):
        pass


def test_odd_characters_in_the_path_are_no_trouble(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "a b%20'ü?#") as url, Redis.from_url(url) as redis:
        assert redis.ping()


def test_postgres_never_runs_as_root_even_where_nobody_else_may_go(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with embedded_postgres(private / "d a'ta%", durable=False) as url:
        assert answer(url) == 42
        (server,) = [each for each in servers_on(private) if each.name() == "postgres"]
        assert server.uids().real != 0
    assert stat.S_IMODE(private.stat().st_mode) == 0o700  # nobody's way in was opened


def test_a_setup_that_was_cut_off_is_done_anew(tmp_path: Path) -> None:
    scratch = tmp_path / "postgres" / "cluster.new"
    (scratch / "base").mkdir(parents=True)
    (scratch / "base" / "1").write_text("half")
    with embedded_postgres(tmp_path, durable=False) as url:
        assert answer(url) == 42


def test_data_of_another_version_of_postgres_gets_one_line(tmp_path: Path) -> None:
    cluster = tmp_path / "postgres" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 9, but here are only \d+"), (
            embedded_postgres(tmp_path)):
        pass


def test_a_server_that_doesnt_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").write_text("no such thing\n" * 10)
    with pytest.raises(EmbeddedError, match=r"Redis didn't start: .*Bad file format") as raised, (
            embedded_redis(tmp_path)):
        pass
    assert "\n" not in str(raised.value)
    assert servers_on(tmp_path) == []


def test_a_program_that_isnt_there_says_so(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        server = ServerProcess("Nothing", [str(tmp_path / "nothing")], {}, tmp_path / "log", signal.SIGTERM,
                               lock.fileno(), lambda: False)
        with pytest.raises(EmbeddedError, match="Nothing didn't start: .*No such file"), running(server):
            pass


def test_a_server_that_dies_again_and_again_is_told_of_now_and_then(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(server_process, "RESTART_S", (0.001, 60.0))
    starts = tmp_path / "starts"
    says = f"echo start >> {starts}; echo 'it FATAL: no room'; echo ended; [ $(wc -l < {starts}) -gt 1 ] || sleep 2"
    with (tmp_path / "lock").open("w") as lock:
        server = ServerProcess("Nothing", ["sh", "-c", f"{says}; exit 1"], {}, tmp_path / "log",
                               signal.SIGTERM, lock.fileno(), starts.exists)
        with running(server):
            until(lambda: starts.read_text().count("start") > 6, "it is started again")
    told = [record.getMessage() for record in caplog.records if "ended with status" in record.getMessage()]
    assert told[0] == "Nothing ended with status 1 and is started again; it said: it FATAL: no room"
    assert told[1].startswith("Nothing ended with status 1, 2 times in a row, and is started again")
    assert len(told) < 5


def test_a_folder_that_cant_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match="file/data/redis: Not a directory"), embedded_redis(tmp_path / "file/data"):
        pass


def test_without_a_running_tandem_there_is_no_postgres_to_ask(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="no Tandem runs on this data folder"):
        running_postgres(tmp_path)

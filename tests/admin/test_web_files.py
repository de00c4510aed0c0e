from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from admin import web_files


@pytest.fixture
def browser(tmp_path: Path) -> TestClient:
    (tmp_path / "demo").mkdir()
    (tmp_path / "tandem-call").mkdir()
    for part in web_files.PARTS:
        (tmp_path / "tandem-call" / f"{part}.js").write_text(f"// {part}\n")
    (tmp_path / "demo" / "index.html").write_text("<!doctype html>")
    (tmp_path / "demo" / "demo.css").write_text("body {}")
    (tmp_path / "secret.txt").write_text("no")
    app = FastAPI()
    app.include_router(web_files.router(tmp_path))
    return TestClient(app)


def test_the_widget_may_be_loaded_by_any_page_and_is_kept_for_a_while(browser: TestClient) -> None:
    answer = browser.get("/tandem-call.js")
    assert answer.text == "// texts\n// style\n// call\n// widget\n// element\n"
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["cache-control"] == "public, max-age=300"
    again = browser.get("/tandem-call.js", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_demo_page_allows_its_own_files_and_the_microphone_alone(browser: TestClient) -> None:
    answer = browser.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["permissions-policy"] == "microphone=(self)"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert browser.get("/demo/demo.css").headers["content-type"] == "text/css; charset=utf-8"


@pytest.mark.parametrize("path", [
    "/demo/nothing.js", "/demo/../secret.txt", "/demo/%2e%2e%2fsecret.txt", "/demo/..%2fsecret.txt", "/secret.txt",
    "/demo/", "/demo/."])
def test_nothing_else_is_served(browser: TestClient, path: str) -> None:
    assert browser.get(path).status_code == 404

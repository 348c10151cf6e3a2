"""The deployment files: valid by their own tools' judgement, and true of one another."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from support.prometheus import program
from tercet.server import config
from tercet.server.metrics import Metrics
from tercet.server.server_metrics import ServerMetrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE_FILES = [ROOT / "docker-compose.yml", DEPLOY / "docker-compose.gpu.yml"]
BIN = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE_FILES[0].read_text())


def check_compose(*paths: Path) -> subprocess.CompletedProcess[str]:
    return run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *paths)


def test_compose_files_meet_the_schema() -> None:
    result = check_compose(*COMPOSE_FILES)
    assert result.returncode == 0, result.stdout


def test_the_schema_finds_a_typo(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE_FILES[0].read_text().replace("read_only:", "readonly:"))
    assert check_compose(wrong).returncode != 0


def test_the_server_has_no_more_rights_than_it_needs() -> None:
    service = compose()["services"]["tercet"]
    user = int(service["user"].split(":")[0])
    assert user > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert f"USER {user}:{user}" in (DEPLOY / "Dockerfile").read_text()


def test_every_port_is_published_on_loopback_alone() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_server_takes_its_command_and_environment() -> None:
    service = compose()["services"]["tercet"]
    command, *models = service["command"]
    assert command == "serve"
    settings = config.load({}, models, environment=service["environment"])
    assert (settings.host, settings.metrics_host) == ("0.0.0.0", "0.0.0.0")  # noqa: S104 (within the container)
    assert settings.lame_duck + settings.grace < seconds(service["stop_grace_period"])
    mounts = {volume.split(":")[1]: ROOT / volume.split(":")[0] for volume in service["volumes"]}
    assert (mounts[settings.models[0].source] / "config.json").is_file()
    published = {int(port.split(":")[-1]) for port in service["ports"]}
    assert published == {settings.port}
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == [f"tercet:{settings.metrics_port}"]


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_what_compose_mounts_is_there() -> None:
    volumes = [volume for service in compose()["services"].values() for volume in service.get("volumes", [])]
    local = [volume.split(":")[0] for volume in volumes if volume.startswith("./")]
    assert local
    assert [path for path in local if not (ROOT / path).exists()] == []


def test_the_dockerfile_is_clean() -> None:
    result = run(BIN / "hadolint", DEPLOY / "Dockerfile")
    assert result.returncode == 0, result.stdout


def test_the_dockerfile_copies_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    sources = [
        source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for source in line.split()
    ]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in allowed if line.startswith("!")} == set(sources)


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    result = run(program("promtool"), "check", "config", "prometheus.yml", cwd=DEPLOY / "prometheus")
    assert result.returncode == 0, result.stderr


def test_the_alerts_fire_when_they_should() -> None:
    result = run(program("promtool"), "test", "rules", "alerts_test.yml", cwd=DEPLOY / "prometheus")
    assert result.returncode == 0, result.stderr


def test_every_alert_has_a_test() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "dashboards" / "tercet.json").read_text())


def expressions() -> Iterator[str]:
    """Every query of the dashboard and of the alerts, with Grafana's variables filled in."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"].replace("$model", ".*").replace("$__rate_interval", "1m")
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def metric_names(expression: str) -> set[str]:
    """The metrics that a query reads."""
    found: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)

    promql_parser.walk(promql_parser.parse(expression), pre_visit=visit)
    return found


SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""], "info": ["_info"]}


def served_names(folder: Path) -> set[str]:
    """The sample names of every metric that the server has."""
    families = [*Metrics().registry.collect(), *ServerMetrics(folder / "metrics").registry.collect()]
    return {family.name + suffix for family in families for suffix in SUFFIXES.get(family.type, [])}


@pytest.mark.parametrize("expression", list(expressions()))
def test_every_query_reads_metrics_that_the_server_has(expression: str, tmp_path: Path) -> None:
    names = metric_names(expression)
    assert names
    assert names - served_names(tmp_path) <= {"up"}


def test_grafana_finds_its_dashboard_and_its_source() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "tercet.yml").read_text())["providers"]
    grafana = compose()["services"]["grafana"]
    mounts = {volume.split(":")[1]: ROOT / volume.split(":")[0] for volume in grafana["volumes"]}
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent.as_posix() == provider["options"]["path"]
    assert (mounts[provider["options"]["path"]] / home.name).is_file()
    assert source["url"] == "http://prometheus:9090"
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    uids = {target["datasource"]["uid"] for panel in panels for target in panel["targets"]}
    assert uids == {source["uid"]}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(columns) < 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])

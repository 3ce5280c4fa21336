"""The dashboard and the alerts ask for series that exist, and Prometheus can read the rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchmill.producer.protocol import keys
from batchmill.worker.local.metrics_ports import metrics_environment
from batchmill.worker.metrics.catalogue import CATALOGUE

from .public_interface import ROOT

MONITORING = ROOT / "compose" / "monitoring"
SERVICES = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())["services"]
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboard.json").read_text())
PAGE = (ROOT / "docs" / "metrics.md").read_text()


def shown_names() -> dict[str, frozenset[str]]:
    """Return the labels of every name in a scrape; the tests of the services hold the catalogue."""
    names: dict[str, frozenset[str]] = {}
    for series in (each for group in CATALOGUE.values() for each in group):
        if series.kind.value == "histogram":
            names |= {
                f"{series.name}_bucket": frozenset({*series.labels, "le"}),
                f"{series.name}_sum": frozenset(series.labels),
                f"{series.name}_count": frozenset(series.labels),
            }
        else:
            names[series.name] = frozenset(series.labels)
    return names


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for rule in rules():
        yield rule["expr"]
    for block in yaml_blocks():
        for trigger in block.get("spec", {}).get("triggers", ()):
            if trigger["type"] == "prometheus":
                yield trigger["metadata"]["query"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def yaml_blocks() -> list[dict[str, Any]]:
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def test_every_series_that_the_page_names_exists() -> None:
    names = {series.name for group in CATALOGUE.values() for series in group}
    spans = " ".join(re.findall(r"`([^`\n]*batchmill_[^`\n]*)`", PAGE))
    used = set(re.findall(r"\bbatchmill_\w+\b", spans)) - {"batchmill_"}
    assert used - names - set(shown_names()) == set()


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_series_in_dashboard_and_alerts_exists(expression: str) -> None:
    names = shown_names()
    used = set(re.findall(r"\bbatchmill_\w+\b", expression))
    assert used - set(names) == set()
    # Labels in selectors and groups are those of the series, or Prometheus' own.
    own = {"instance", "job"}
    for name, selector in re.findall(r"\b(batchmill_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)) <= names[name] | own
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    asked = {label.strip() for group in grouped for label in group.split(",")} - {""}
    assert asked <= own.union(*(names[name] for name in used))


def test_every_series_of_ours_is_on_the_dashboard_or_explained() -> None:
    """A series that no panel shows is found in the tables only; these are meant to be."""
    shown = " ".join(expressions())
    tables_only = {
        *("batchmill_announced_jobs", "batchmill_queue_served", "batchmill_jobs_retried_total"),
        *("batchmill_dead_letters_dropped_total", "batchmill_tenant_queued_jobs"),
        *("batchmill_tenant_queued_tokens", "batchmill_num_requests_waiting"),
        *("batchmill_cache_config_info", "batchmill_max_num_seqs", "batchmill_active_jobs"),
        *("batchmill_tensor_parallel_size", "batchmill_shard_workers_wanted"),
        *("batchmill_busy_tokens_per_second", "batchmill_engine_steps_total"),
        *("batchmill_jobs_claimed_total", "batchmill_jobs_processed_total"),
        *("batchmill_request_time_per_output_token_seconds", "batchmill_request_params_n"),
        *("batchmill_objects_total", "batchmill_object_bytes_total"),  # without a store they stay 0
        # Off by default: without `BATCHMILL_KV_HOST_BYTES` they stay 0.
        *("batchmill_kv_host_bytes", "batchmill_kv_host_stored_blocks_total"),
        *("batchmill_kv_host_restored_blocks_total", "batchmill_kv_host_evicted_blocks_total"),
        "batchmill_kv_host_not_stored_blocks_total",
    }
    names = {series.name for group in CATALOGUE.values() for series in group}
    missing = {name for name in names if not re.search(rf"\b{name}(_bucket|_sum)?\b", shown)}
    assert missing <= tables_only


def test_the_dashboard_is_laid_out_without_gaps_and_overlaps() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for at in places
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Alerts")[2], re.MULTILINE)
    assert listed == names


def test_the_local_configuration_has_the_ports_of_batchmill_up() -> None:
    config = yaml.safe_load((MONITORING / "prometheus-local.yml").read_text())
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]
    }
    given = {"BATCHMILL_METRICS_PORT": "9464"}
    ports = {
        name: metrics_environment(name, given)["BATCHMILL_METRICS_PORT"]
        for name in ("worker", "deliverer", "gateway")
    }
    assert targets == {name: [f"127.0.0.1:{port}"] for name, port in ports.items()}
    assert config["rule_files"] == ["alerts.yml"]


def test_no_alert_waits_for_a_target_that_service_discovery_removes() -> None:
    """The series `up` of a container that is gone ends with its entry in DNS."""
    assert [rule["alert"] for rule in rules() if re.search(r"\bup\b", rule["expr"])] == []


def test_prometheus_scrapes_services_that_serve_metrics() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    for job in config["scrape_configs"]:
        for found in job["dns_sd_configs"]:
            for name in found["names"]:
                environment = SERVICES[name]["environment"]
                assert environment["BATCHMILL_METRICS_PORT"] == found["port"]
                assert environment["BATCHMILL_METRICS_HOST"] == "0.0.0.0"


def test_every_mounted_file_exists_and_grafana_finds_its_dashboard() -> None:
    mounts = {}
    for name in ("prometheus", "grafana"):
        for volume in SERVICES[name]["volumes"]:
            source, target = volume.split(":")[:2]
            if source.startswith("."):
                assert (ROOT / "compose" / source).is_file()
                mounts[target] = source
    folder = yaml.safe_load((MONITORING / "grafana" / "dashboards.yml").read_text())
    path = folder["providers"][0]["options"]["path"]
    assert f"{path}/dashboard.json" in mounts
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounts


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package is `prometheus`)")
    for arguments in (
        ("check", "rules", MONITORING / "alerts.yml"),
        ("check", "config", MONITORING / "prometheus.yml"),
    ):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_first_error_of_a_gpu_raises_an_alert(tmp_path: Path) -> None:
    """Its series begins with that error, so that `increase()` sees none."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package is `prometheus`)")
    labels = 'instance="worker:9464", gpu="0", xid="79"'
    series = f"batchmill_gpu_xid_errors_total{{{labels}}}"
    found = [{"labels": f"{{{labels}}}", "value": 1}]
    (rule,) = (each for each in rules() if each["alert"] == "GpuErrors")
    checked = [
        {"expr": rule["expr"], "eval_time": eval_time, "exp_samples": samples}
        for eval_time, samples in (("9m", []), ("10m", found), ("24m", found), ("40m", []))
    ]
    case = {
        "interval": "1m",
        "input_series": [{"series": series, "values": "_x10 1x40"}],
        "promql_expr_test": checked,
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    arguments = (promtool, "test", "rules", path)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_for_keda_name_what_exists() -> None:
    blocks = yaml_blocks()
    kinds = [trigger["type"] for block in blocks for trigger in block["spec"]["triggers"]]
    assert sorted(kinds) == ["prometheus", "redis"]
    for block in blocks:
        assert (block["apiVersion"], block["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
        spec = block["spec"]
        assert spec["scaleTargetRef"]["name"]
        assert spec["minReplicaCount"] <= spec["maxReplicaCount"]
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            assert all(isinstance(value, str) for value in metadata.values())
            if trigger["type"] == "redis":
                assert metadata["listName"] == keys.queued(keys.queue_name("demo", "normal"))


@pytest.mark.parametrize(
    "path", sorted(Path(MONITORING).rglob("*.yml")), ids=lambda path: path.name
)
def test_files_are_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)

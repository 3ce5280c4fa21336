"""Asks a Prometheus every query of the dashboard and of the alerts, as Grafana would.

`python tests/end_to_end/ask_dashboard.py http://127.0.0.1:9090`
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

MONITORING = Path(__file__).resolve().parents[2] / "compose" / "monitoring"


def queries() -> list[str]:
    """Return the queries, with the dashboard's variables as "all" and "five minutes"."""
    dashboard = json.loads((MONITORING / "grafana" / "dashboard.json").read_text())
    alerts = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    found += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    intervals = [re.sub(r"\$__\w*interval\w*|\$\{__\w+\}", "5m", query) for query in found]
    return [re.sub(r"\$\{?\w+\}?", ".*", query) for query in intervals]


def ask(server: str, query: str) -> tuple[str, int]:
    """Return why Prometheus refuses a query ("" if it does not), and the number of its values."""
    url = f"{server}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return "", len(json.load(response)["data"]["result"])
    except urllib.error.HTTPError as error:
        with error:
            return str(json.load(error).get("error")), 0


def main() -> None:
    """Ask everything, and print what came back."""
    (server,) = sys.argv[1:]
    answers = {query: ask(server, query) for query in sorted(set(queries()))}
    refused = {query: error for query, (error, _) in answers.items() if error}
    for query, error in refused.items():
        print(f"{query}\n  {error}")
    with_values = sum(bool(number) for _, number in answers.values())
    print(f"{len(answers)} expressions were asked, {with_values} have values now")
    print(f"{len(refused)} expressions were refused")
    sys.exit(bool(refused))


if __name__ == "__main__":
    main()

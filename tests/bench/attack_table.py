"""Carries out the attacks that the webhook sender is tested against, against a real socket.

`python tests/bench/attack_table.py [--json]` prints per attack the URL, the addresses of its name,
the verdict, and the connections that a socket on every address of this machine accepted. It exits
with 1 if a verdict is wrong or a connection was accepted. The attacks are those of
`tests/worker/webhooks/address_attacks.py`, which the tests use.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.worker.webhooks.address_attacks import Attack, Listener, attacks, carry_out, send


def row_of(number: int, attack: Attack, listener: Listener) -> dict[str, object]:
    """Carry out an attack; return its row."""
    outcome = carry_out(attack, listener.port)
    seen = listener.num_connections()
    return {
        "row": number,
        "what": attack.target,
        "url": attack.url,
        "answers": list(attack.addresses),
        "verdict": "refused" if outcome.disables else "let through",
        "reason": outcome.reason,
        "connections": seen,
        "is_right": outcome.disables and outcome.reason in attack.reasons and seen == 0,
    }


def main() -> int:
    """Print the table; return 1 if a row is wrong, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    as_json = parser.parse_args().json
    listener = Listener.everywhere()
    with listener.socket:
        # The control: without it, a socket that notices nothing would also give a table of zeros.
        send(f"http://127.0.0.1:{listener.port}/", networks=["127.0.0.0/8"], total_timeout_s=0.3)
        control = listener.num_connections()
        rows = [row_of(number, attack, listener) for number, attack in enumerate(attacks(), 1)]
    for row in rows:
        if as_json:
            print(json.dumps(row))
            continue
        addresses = row["answers"] or "-"
        print(
            f"{row['row']:>3}  {row['what']:<16}  {row['url']!a:<44}  {addresses!s:<38}  "
            f"{row['verdict']:<11}  {row['reason']:<15}  {row['connections']}"
        )
    num_wrong = sum(not row["is_right"] for row in rows)
    summary = (
        f"{len(rows)} rows, {num_wrong} wrong; the control (loopback allowed) made "
        f"{control} connection"
    )
    print(summary, file=sys.stderr if as_json else sys.stdout)
    return 1 if num_wrong or control != 1 else 0


if __name__ == "__main__":
    sys.exit(main())

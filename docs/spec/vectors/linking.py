#!/usr/bin/env python3
"""Writes linking.json: a second implementation of ../linking.md, independent of the Rust code.

Needs the `cryptography` package. The Rust tests read the file and must agree byte for byte.
"""

import json

from identity import HERE, NOW, Authority, cbor


def frame(kind, body):
    text = cbor([kind, body])
    return len(text).to_bytes(4, "big") + text


def main():
    authority = Authority(bytes(range(96)))
    relay = {0: bytes(range(64, 96)), 1: "relay.example.com", 2: 3478}
    wish = bytes(range(16))
    vectors = {
        "about": "docs/spec/linking.md; written by linking.py, an independent implementation",
        "now": NOW,
        "authority_random": bytes(range(96)).hex(),
        "tell": {
            "hello": frame(0, {0: "0.1.0", 1: [authority.record], 2: [relay]}).hex(),
            "wish": frame(1, {0: wish, 1: "reporter.reports", 2: "db.tools", 3: "figures"}).hex(),
            "wish_without_purpose": frame(1, {0: wish, 1: "reporter.reports", 2: "db.tools"}).hex(),
            "withdrawn": frame(2, {0: wish}).hex(),
            "denied": frame(3, {0: "reporter.reports", 1: bytes([3]) * 8, 2: NOW + 86_400}).hex(),
            "told": frame(4, {}).hex(),
            "keepalive": frame(5, {}).hex(),
        },
        "heard": frame(0, {0: 300}).hex(),
    }
    (HERE / "linking.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()

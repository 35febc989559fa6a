#!/usr/bin/env python3
"""Writes candidates.json: the control messages of ../paths.md and the tags of its checks, independent of the Rust code.

Needs nothing but Python. The Rust tests read the file and must agree byte for byte.
"""

import hashlib
import hmac
import json
import pathlib

HERE = pathlib.Path(__file__).parent


def head(major, n):
    """The head of a CBOR item (RFC 8949), in its shortest form."""
    if n < 24:
        return bytes([major << 5 | n])
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if n < 1 << 8 * size:
            return bytes([major << 5 | code]) + n.to_bytes(size, "big")
    raise ValueError(n)


def cbor(value):
    match value:
        case bool():
            return bytes([0xF5 if value else 0xF4])
        case int():
            return head(0, value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value.encode())) + value.encode()
        case list():
            return head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            return head(5, len(value)) + b"".join(cbor(k) + cbor(v) for k, v in value.items())
    raise TypeError(value)


def message(kind, body):
    encoded = cbor([kind, body])
    return (len(encoded).to_bytes(2, "big") + encoded).hex()


def v4(text, port):
    return bytes(int(part) for part in text.split(".")) + port.to_bytes(2, "big")


HOST, FIXED, REFLEXIVE, PREDICTED, UNKNOWN = 0, 1, 2, 3, 9
KNOWN = [
    {0: HOST, 1: v4("10.0.0.2", 4433)},
    {0: FIXED, 1: bytes.fromhex("20010db8000000000000000000000007") + (443).to_bytes(2, "big")},
    {0: REFLEXIVE, 1: v4("198.51.100.1", 40000)},
    {0: PREDICTED, 1: v4("198.51.100.1", 40001)},
]


def candidates(generation, entries, nat="symmetric", birthday=True):
    return message(1, {0: generation, 1: entries, 2: nat, 3: birthday})


def tag(key):
    return hmac.new(key, b"peerage check tag v1", hashlib.sha256).digest()[:4].hex()


EXPORTED = bytes(range(64))
VECTORS = {
    "known": {"framed": candidates(7, KNOWN)},
    "unknown_kinds": {
        "comment": "kind 9 has no address and a key of its own, kind 300 a text for one: what is left is the list above",
        "framed": candidates(7, [{0: UNKNOWN, 7: "quic.example"}, *KNOWN, {0: 300, 1: "not an address"}]),
    },
    "too_many": {"framed": candidates(7, [{0: UNKNOWN}] * 17)},
    "bad_address": {"framed": candidates(7, [{0: HOST, 1: b"12345"}])},
    "opened": {"generation": 300, "framed": message(5, {0: 300})},
    "tags": {"exported": EXPORTED.hex(), "initiator": tag(EXPORTED[:32]), "responder": tag(EXPORTED[32:])},
}

(HERE / "candidates.json").write_text(json.dumps(VECTORS, indent=2) + "\n")

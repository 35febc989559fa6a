#!/usr/bin/env python3
"""Writes identity.json: a second implementation of ../identity.md, independent of the Rust code.

Needs the `cryptography` package for X25519 and Ed25519. The Rust tests read the file and must agree byte for byte.
"""

import base64
import hashlib
import hmac
import json
import pathlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = pathlib.Path(__file__).parent
NOW = 1_800_000_000


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def hkdf(salt, secret, info):
    prk = hmac.new(salt, secret, hashlib.sha256).digest()
    return hmac.new(prk, info + b"\x01", hashlib.sha256).digest()


def raw(public):
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


# CBOR (RFC 8949), as much as is needed: definite lengths, the shortest form of every integer.


def head(major, n):
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


def signed(kind, payload, key):
    return cbor([payload, key.sign(b"peerage " + kind + b" v1\x00" + payload)])


class Authority:
    def __init__(self, seeds):
        self.root, self.signing = (Ed25519PrivateKey.from_private_bytes(s) for s in (seeds[:32], seeds[32:64]))
        self.agreement = X25519PrivateKey.from_private_bytes(seeds[64:])
        self.agreement_secret = seeds[64:]
        self.fingerprint = sha(raw(self.root.public_key()))
        body = {
            0: raw(self.root.public_key()),
            1: raw(self.signing.public_key()),
            2: raw(self.agreement.public_key()),
            3: 1,
            4: NOW + 10 * 365 * 24 * 3600,
        }
        self.record = signed(b"authority record", cbor(body), self.root)

    def agent(self, name):
        return {0: self.fingerprint, 1: name}

    def passport(self, name, instance, not_before, not_after):
        body = {0: self.agent(name), 1: instance, 2: not_before, 3: not_after}
        return signed(b"passport", cbor(body), self.signing)


def binding(fingerprint, name):
    return fingerprint + bytes([len(name)]) + name.encode()


def main():
    seeds_a, seeds_b = bytes(range(96)), bytes(range(100, 196))
    a, b = Authority(seeds_a), Authority(seeds_b)
    name_a, name_b = "planner", "db-tool-server.tools"
    instance_secret = bytes(range(200, 232))
    instance = raw(X25519PrivateKey.from_private_bytes(instance_secret).public_key())
    not_before, not_after = NOW - 300, NOW + 86_400
    passport = a.passport(name_a, instance, not_before, not_after)

    ids = [binding(a.fingerprint, name_a), binding(b.fingerprint, name_b)]
    # Sorted as ids are: by fingerprint, then by name.
    order = sorted(((a.fingerprint, name_a.encode(), ids[0]), (b.fingerprint, name_b.encode(), ids[1])))
    both = order[0][2] + order[1][2]
    shared = a.agreement.exchange(X25519PublicKey.from_public_bytes(raw(b.agreement.public_key())))
    # Within one authority the names decide, byte by byte: "db" sorts before "db-a", which is longer.
    within = binding(a.fingerprint, "db") + binding(a.fingerprint, "db-a")

    invite = bytes(range(32, 64))
    relay_key = bytes(range(64, 96))
    ticket = {
        0: b.record,
        1: name_b,
        2: [{0: relay_key, 1: "relay.example.com", 2: 3478}],
        3: invite,
        4: NOW + 3600,
    }
    ticket = cbor(ticket)
    text = "peerage1-" + base64.urlsafe_b64encode(ticket + sha(ticket)[:4]).decode().rstrip("=")
    relay_text = base64.b32encode(relay_key).decode().rstrip("=").lower() + "@relay.example.com:3478"

    def relay(host="relay.example.com", port=3478, **more):
        return cbor({0: relay_key, 1: host, 2: port, **({3: more["tls"]} if more else {})}).hex()

    good = [relay(), relay("a..b_c-d"), relay("::1"), relay("203.0.113.7"), relay("x" * 253), relay(port=65535, tls=443)]
    bad = [relay(host) for host in ("", "-", "..", ".a", "a-", "a b", "g::1", ":" * 46, "x" * 254, "caf\u00e9")]
    bad += [relay(port=0), relay(port=65536), relay(tls=0), cbor({0: relay_key[:-1], 1: "a", 2: 1}).hex()]

    vectors = {
        "about": "docs/spec/identity.md; written by identity.py, an independent implementation",
        "now": NOW,
        "authorities": [
            {
                "random": s.hex(),
                "root": raw(x.root.public_key()).hex(),
                "fingerprint": x.fingerprint.hex(),
                "record": x.record.hex(),
            }
            for s, x in ((seeds_a, a), (seeds_b, b))
        ],
        "agents": [
            {"authority": n, "name": name, "binding": i.hex(), "routing_id": sha(b"peerage rid v1", x.fingerprint, name.encode())[:16].hex()}
            for n, (x, name, i) in enumerate(((a, name_a, ids[0]), (b, name_b, ids[1])))
        ],
        "instance": {
            "secret": instance_secret.hex(),
            "key": instance.hex(),
            "id": sha(b"peerage iid v1", instance)[:8].hex(),
            "not_before": not_before,
            "not_after": not_after,
            "passport": passport.hex(),
            "credential": cbor([a.record, passport]).hex(),
        },
        "pair_secret": {
            "between": hkdf(b"peerage pair v1", shared, both).hex(),
            "within_names": ["db-a", "db"],
            "within": hkdf(b"peerage pair within v1", a.agreement_secret, within).hex(),
            "invite_secret": invite.hex(),
            "of_invite": hkdf(b"peerage invite v1", invite, ids[1]).hex(),
        },
        "ticket": {"expires": NOW + 3600, "relay": relay_text, "text": text},
        "relays": {"good": good, "malformed": bad},
    }
    (HERE / "identity.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()

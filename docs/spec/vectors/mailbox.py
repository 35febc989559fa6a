#!/usr/bin/env python3
"""Writes mailbox.json: a second implementation of ../mailbox.md, independent of the Rust code.

Needs the `cryptography` package. The Rust tests read the file and must agree byte for byte.
"""

import hmac
import json

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from identity import HERE, NOW, Authority, cbor, hkdf, raw, sha, signed

FIRST = 1_735_689_600


def prf(key, *parts):
    return hmac.new(key, b"".join(parts), "sha256").digest()


def authority(seed):
    return Authority(bytes([seed ^ 0x55]) + bytes([seed]) * 95)


def binding(owner, name):
    return owner.fingerprint + bytes([len(name)]) + name.encode()


def seal(asker, owner, e_secret, relays, reason):
    request = {0: asker.record, 1: "planner", 2: relays, 3: reason, 4: NOW, 5: binding(owner, "db")}
    text = signed(b"mail request", cbor(request), asker.signing)
    padded = len(text).to_bytes(2, "big") + text
    padded += bytes(976 - len(padded))
    e = X25519PrivateKey.from_private_bytes(e_secret)
    public, theirs = raw(e.public_key()), raw(owner.agreement.public_key())
    shared = e.exchange(X25519PublicKey.from_public_bytes(theirs))
    key = hkdf(public, shared, b"peerage mailbox v1" + theirs)
    route = sha(b"peerage rid v1", owner.fingerprint, b"db")[:16]
    return route, public + AESGCM(key).encrypt(bytes(12), padded, route)


def decoy(relay_key, name):
    root = hkdf(b"", relay_key, b"peerage mailbox decoy v1")
    key = sha(b"peerage name v1", name)[:16]
    keys = b"".join(prf(root, b"key", bytes([i]), key) for i in range(3))
    made = FIRST + int.from_bytes(prf(root, b"time", key)[:8], "big") % 2**25
    a = Authority(keys)
    body = {0: raw(a.root.public_key()), 1: raw(a.signing.public_key()), 2: raw(a.agreement.public_key()), 3: 1}
    body[4] = made + 10 * 365 * 24 * 3600
    return key, signed(b"authority record", cbor(body), a.root)


def frames(route, name_key, sealed, record, relay_key, e_secret):
    e, relay = X25519PrivateKey.from_private_bytes(e_secret), X25519PrivateKey.from_private_bytes(relay_key)
    public, theirs = raw(e.public_key()), raw(relay.public_key())
    answer = hkdf(b"", e.exchange(relay.public_key()), b"peerage mailbox look-up v1" + theirs + public)
    tag, nonce, mail = bytes(range(0xA1, 0xA7)), bytes(range(0x11, 0x19)), bytes(range(0x21, 0x29))
    session = bytes([0x42]) * 32

    def frame(kind, body, key=None):
        whole = bytes([4, kind]) + tag + nonce + body
        return whole + prf(key, whole)[:16] if key else whole

    return {
        "lookup": frame(16, name_key + public),
        "records": frame(17, (len(record).to_bytes(2, "big") + record) * 2, answer),
        "post": frame(18, route + sealed),
        "posted": frame(19, b""),
        "check": frame(20, mail, session),
        "mail": frame(21, mail + sealed, session),
        "mail_none": frame(21, bytes(8), session),
    }


def main():
    asker, owner = authority(1), authority(2)
    relays = [{0: bytes([5]) * 32, 1: "relay.example", 2: 3478}]
    e = bytes([9]) * 32
    route, sealed = seal(asker, owner, e, relays, "to read reports")
    relay_key = bytes([7]) * 32
    name_key, record = decoy(relay_key, b"db")
    out = {
        "about": "docs/spec/mailbox.md; written by mailbox.py",
        "now": NOW,
        "asker": asker.fingerprint.hex(),
        "owner": owner.fingerprint.hex(),
        "routing_id": route.hex(),
        "e_secret": e.hex(),
        "sealed": sealed.hex(),
        "relay_secret": relay_key.hex(),
        "name_key": name_key.hex(),
        "decoy": record.hex(),
        "frames": {name: frame.hex() for name, frame in frames(route, name_key, sealed, record, relay_key, e).items()},
    }
    (HERE / "mailbox.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes operator.json: a second implementation of ../control-plane.md, independent of the Rust code.

Needs the `cryptography` package. The Rust tests read the file and must agree byte for byte.
"""

import hmac
import json

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from identity import HERE, NOW, Authority, cbor, hkdf, raw, signed

TCP, UDP = 0, 1


def frame(kind, body):
    text = cbor([kind, body])
    return len(text).to_bytes(4, "big") + text


def hello(authority, exporter, e):
    return {0: authority.record, 1: e, 2: authority.signing.sign(b"peerage operator v1\x00" + exporter + e)}


def proof(kind, exporter, e_public, instance_secret, shown):
    instance = X25519PrivateKey.from_private_bytes(instance_secret)
    shared = instance.exchange(e_public)
    key = hkdf(exporter, shared, b"peerage operator instance v1" + raw(e_public) + raw(instance.public_key()))
    return hmac.new(key, bytes([kind]) + shown, "sha256").digest()


def update(authority, other):
    ours, theirs = bytes(range(16)), bytes(range(16, 32))
    relay = {0: bytes(range(64, 96)), 1: "relay.example.com", 2: 3478}
    peer = {
        0: ours,
        1: {0: authority.fingerprint, 1: "db-tool-server.tools"},
        2: [bytes([7]) * 32],
        3: "db",
        4: ["results"],
        5: [{0: "mcp", 1: 80, 2: TCP}],
        6: [relay],
        7: NOW + 3600,
        8: 0,
        9: 0,
    }
    entry = {0: peer, 1: [ours, theirs], 2: "cluster-b", 3: [{0: 80, 1: TCP, 2: 8081}]}
    return {
        0: 1,
        1: True,
        2: False,
        3: {0: 1, 1: [4711, 4650, 4700]},
        4: [entry],
        5: [{0: other.fingerprint, 1: "planner"}],
        6: [bytes([9]) * 16],
        7: [{0: authority.fingerprint, 1: bytes([3]) * 8, 2: NOW + 86_400}],
        8: {
            0: [{0: "results", 1: 80, 2: TCP, 3: 8080}],
            1: [relay],
            2: 3600,
            3: True,
            4: [{0: UDP, 1: 5353}],
        },
        9: {0: 1, 1: [4705, 0, 4699]},
    }


def main():
    authority, other = Authority(bytes(range(96))), Authority(bytes(range(100, 196)))
    exporter = bytes(range(128, 160))
    e_secret, instance_secret = bytes(range(160, 192)), bytes(range(200, 232))
    e = X25519PrivateKey.from_private_bytes(e_secret).public_key()
    instance = raw(X25519PrivateKey.from_private_bytes(instance_secret).public_key())
    token = "header.payload.signature"
    agent = {0: authority.fingerprint, 1: "reporter.reports"}
    passport = authority.passport("reporter.reports", instance, NOW - 300, NOW + 86_400)
    credential = cbor([authority.record, passport])
    enrolment = signed(
        b"enrolment",
        cbor({0: agent, 1: instance, 2: bytes(range(16)), 3: "reports", 4: "reporter-0", 5: "reporter", 6: NOW}),
        authority.signing,
    )
    proof_enrol = proof(0, exporter, e, instance_secret, token.encode())
    proof_resume = proof(1, exporter, e, instance_secret, credential)
    have = {0: 1, 1: [4700, 0, 4698]}
    report = {
        0: {0: "symmetric", 1: "endpoint-dependent mapping"},
        1: [{0: agent, 1: 1, 2: 4, 3: "both NATs are symmetric"}],
        2: [{0: agent, 1: 80, 2: TCP, 3: 40_000, 4: "another program listens on it"}],
        3: "0.1.0",
        4: [other.record],
    }
    vectors = {
        "about": "docs/spec/control-plane.md; written by operator.py, an independent implementation",
        "now": NOW,
        "authority_random": bytes(range(96)).hex(),
        "other_random": bytes(range(100, 196)).hex(),
        "exporter": exporter.hex(),
        "e_secret": e_secret.hex(),
        "instance_secret": instance_secret.hex(),
        "audience": "peerage.dev/" + authority.fingerprint.hex(),
        "token": token,
        "credential": credential.hex(),
        "enrolment": enrolment.hex(),
        "proof_enrol": proof_enrol.hex(),
        "proof_resume": proof_resume.hex(),
        "to_agent": {
            "hello": frame(0, hello(authority, exporter, raw(e))).hex(),
            "passport": frame(1, {0: credential, 1: enrolment}).hex(),
            "update": frame(2, update(authority, other)).hex(),
            "go_away": frame(3, {0: 4, 1: "no AgentPeer selects this pod", 2: 30}).hex(),
            "keepalive": frame(4, {}).hex(),
        },
        "to_operator": {
            "enrol": frame(0, {0: token, 1: instance, 2: proof_enrol, 4: have, 5: "0.1.0"}).hex(),
            "resume": frame(1, {0: credential, 1: enrolment, 2: proof_resume, 3: have, 4: "0.1.0"}).hex(),
            "renew": frame(2, {}).hex(),
            "ack": frame(3, {0: 7, 1: 1}).hex(),
            "report": frame(4, report).hex(),
            "keepalive": frame(5, {}).hex(),
        },
    }
    (HERE / "operator.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()

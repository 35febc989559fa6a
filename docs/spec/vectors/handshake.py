#!/usr/bin/env python3
"""Writes knock.json and handshake.json: a second implementation of ../handshake.md, independent of the Rust code.

Needs the `cryptography` package for X25519, AES-GCM and AES. The Rust tests read the files and must agree byte for byte.
"""

import hashlib
import hmac
import json
import pathlib

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = pathlib.Path(__file__).parent


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def sha(data):
    return hashlib.sha256(data).digest()


def hkdf_expand(prk, info, length):
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = mac(prk, block + info + bytes([counter]))
        out, counter = out + block, counter + 1
    return out[:length]


def expand(secret, label, context, length):
    full = b"peerage " + label.encode()
    return hkdf_expand(secret, length.to_bytes(2, "big") + bytes([len(full)]) + full + bytes([len(context)]) + context, length)


def lp16(data):
    return len(data).to_bytes(2, "big") + data


class Random:
    def __init__(self, seed):
        self.key = seed

    def draw(self, length):
        blocks = (mac(self.key, b"\x01" + n.to_bytes(8, "big")) for n in range((length + 31) // 32))
        out = b"".join(blocks)[:length]
        self.key = mac(self.key, b"\x00")
        return out


def prologue(initiator, responder):
    return lp16(b"peerage noise v1") + lp16(initiator) + lp16(responder)


def direction(pair_secret, initiator, responder):
    return mac(sha(prologue(initiator, responder)), pair_secret)


# --- knock ----------------------------------------------------------------------------------------------------------

def knock(pair_secret, initiator, responder, unix_time, random):
    key = expand(direction(pair_secret, initiator, responder), "knock", (unix_time // 600).to_bytes(8, "big"), 32)
    hint, tag_key = expand(key, "hint", b"", 6), expand(key, "tag", b"", 32)
    return {
        "pair_secret": pair_secret, "initiator_id": initiator, "responder_id": responder, "unix_time": unix_time,
        "epoch": unix_time // 600, "random": random, "hint": hint, "tag_key": tag_key,
        "knock": hint + random + mac(tag_key, hint + random)[:8],
    }


# --- packets --------------------------------------------------------------------------------------------------------

def protect(secret, context, header, pn_len, number, plaintext):
    """RFC 9001 section 5.3 and 5.4; `header` ends with the packet number."""
    key, iv, hp = expand(secret, "key", context, 32), expand(secret, "iv", context, 12), expand(secret, "hp", b"", 32)
    nonce = bytes(a ^ b for a, b in zip(iv, number.to_bytes(12, "big")))
    packet = bytearray(header + AESGCM(key).encrypt(nonce, plaintext, header))
    offset = len(header) - pn_len
    sample = bytes(packet[offset + 4:offset + 20])
    mask = Cipher(algorithms.AES(hp), modes.ECB()).encryptor().update(sample)
    packet[0] ^= mask[0] & (0x0F if packet[0] & 0x80 else 0x1F)
    for i in range(pn_len):
        packet[offset + i] ^= mask[1 + i]
    return {"header": header, "packet_number": number, "plaintext": plaintext, "key": key, "iv": iv, "hp": hp,
            "packet": bytes(packet)}


# --- Noise_XXpsk0_25519_AESGCM_SHA256 -------------------------------------------------------------------------------

def public(private):
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def dh(private, peer):
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(peer))


class Symmetric:
    def __init__(self, prologue_bytes):
        name = b"Noise_XXpsk0_25519_AESGCM_SHA256"
        self.h = name if len(name) == 32 else sha(name)
        self.ck, self.key, self.nonce = self.h, None, 0
        self.mix_hash(prologue_bytes)

    def mix_hash(self, data):
        self.h = sha(self.h + data)

    def hkdf(self, ikm, count):
        return [hkdf_expand(mac(self.ck, ikm), b"", 32 * count)[32 * i:32 * i + 32] for i in range(count)]

    def mix_key(self, ikm):
        self.ck, self.key = self.hkdf(ikm, 2)
        self.nonce = 0

    def mix_key_and_hash(self, ikm):
        self.ck, middle, key = self.hkdf(ikm, 3)
        self.mix_hash(middle)
        self.key, self.nonce = key, 0

    def seal(self, plaintext):
        out = AESGCM(self.key).encrypt(bytes(4) + self.nonce.to_bytes(8, "big"), plaintext, self.h)
        self.nonce += 1
        self.mix_hash(out)
        return out

    def ephemeral(self, key):
        self.mix_hash(key)
        self.mix_key(key)
        return key

    def split(self):
        return self.hkdf(b"", 2)


def payload(parameters, credential):
    return lp16(parameters) + lp16(credential)


def handshake():
    pair_secret, initiator, responder = bytes([0x5E]) * 32, b"\x01" * 32 + b"planner.agents", b"\x02" * 32 + b"db.tools"
    client_static, server_static = bytes(range(32)), bytes(range(32, 64))
    client_credential, server_credential = b"the client's record and passport", b"the server's record and passport"
    client_parameters, server_parameters = bytes.fromhex("01024457"), bytes.fromhex("010248ae")
    client_seed, server_seed = b"\xc1" * 32, b"\x5e" * 32
    first_id = knock(pair_secret, initiator, responder, 1_800_000_000, b"random")["knock"]

    # As a configuration's seed is used: one draw seeds the session, whose first draw seeds the ephemerals' generator.
    client_session, server_session = (Random(Random(seed).draw(32)) for seed in (client_seed, server_seed))
    client_ephemeral, server_ephemeral = (Random(s.draw(32)).draw(32) for s in (client_session, server_session))
    server_random = server_session.draw(32)

    d = direction(pair_secret, initiator, responder)
    psk = expand(d, "psk", b"", 32)
    n = Symmetric(prologue(initiator, responder))
    n.mix_key_and_hash(psk)
    message_1 = n.ephemeral(public(client_ephemeral)) + n.seal(payload(client_parameters, b""))
    message_2 = n.ephemeral(public(server_ephemeral))
    n.mix_key(dh(server_ephemeral, public(client_ephemeral)))
    message_2 += n.seal(public(server_static))
    n.mix_key(dh(server_static, public(client_ephemeral)))
    message_2 += n.seal(payload(server_parameters, server_credential))
    message_3 = n.seal(public(client_static))
    n.mix_key(dh(client_static, public(server_ephemeral)))
    message_3 += n.seal(payload(b"", client_credential))
    k1, k2 = n.split()

    initial = {side: expand(d, f"initial {side}", first_id, 32) for side in "cs"}
    context = sha(message_1) + bytes([len(first_id)]) + first_id + server_random
    space = {side: expand(d, f"handshake {side}", context, 32) for side in "cs"}
    root = mac(b"peerage 1-rtt v1", k1 + k2)
    one_rtt = {side: expand(root, f"1rtt {side}", b"", 32) for side in "cs"}
    updated = {side: expand(one_rtt[side], "ku", b"", 32) for side in "cs"}
    exporter = expand(root, "exporter", b"", 32)

    source = bytes.fromhex("0102030405060708")
    version = bytes.fromhex("50524701")
    plaintext = b"a packet's frames, sealed"
    sealed_len = (4 + len(plaintext) + 16 | 0x4000).to_bytes(2, "big")
    number = 0x01020304
    pn = number.to_bytes(4, "big")
    long = version + bytes([20]) + first_id + bytes([8]) + source
    initial_header = b"\xc3" + long + b"\x00" + sealed_len + pn
    handshake_header = b"\xe3" + long + sealed_len + pn
    short_header = b"\x43" + source + pn
    rfc_side = lambda secrets: {"client_secret": secrets["c"], "server_secret": secrets["s"]}
    export = lambda label, ctx, length: {
        "label": label, "context": ctx, "output": expand(exporter, "export", sha(lp16(label) + ctx), length)}
    return {
        "about": "One whole handshake from fixed seeds; all values in hex. Written by handshake.py.",
        "pair_secret": pair_secret, "initiator_id": initiator, "responder_id": responder, "first_id": first_id,
        "client": {"static": client_static, "static_public": public(client_static), "credential": client_credential,
                   "parameters": client_parameters, "seed": client_seed, "ephemeral": client_ephemeral},
        "server": {"static": server_static, "static_public": public(server_static), "credential": server_credential,
                   "parameters": server_parameters, "seed": server_seed, "ephemeral": server_ephemeral,
                   "random": server_random},
        "prologue": prologue(initiator, responder), "direction_secret": d, "psk": psk,
        "message_1": message_1, "message_2": message_2, "message_3": message_3,
        "split": {"initiator": k1, "responder": k2}, "handshake_hash": n.h,
        "initial": rfc_side(initial) | {
            "client_packet": protect(initial["c"], source, initial_header, 4, number, plaintext),
            "server_packet": protect(initial["s"], source, initial_header, 4, number, plaintext)},
        "handshake": rfc_side(space) | {
            "client_packet": protect(space["c"], b"", handshake_header, 4, number, plaintext),
            "server_packet": protect(space["s"], b"", handshake_header, 4, number, plaintext)},
        "one_rtt": rfc_side(one_rtt) | {
            "client_packet": protect(one_rtt["c"], b"", short_header, 4, number, plaintext),
            "server_packet": protect(one_rtt["s"], b"", short_header, 4, number, plaintext)},
        "one_rtt_after_update": rfc_side(updated),
        "exporter_secret": exporter,
        "exports": [export(b"peerage stun", b"initiator", 32), export(b"peerage stun", b"", 20), export(b"", b"", 100)],
    }


def in_hex(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: in_hex(item) for name, item in value.items()}
    return [in_hex(item) for item in value] if isinstance(value, list) else value


def write(name, value):
    (HERE / name).write_text(json.dumps(in_hex(value), indent=2) + "\n")


write("knock.json", {
    "about": "Knocks; all byte strings in hex. Written by handshake.py.",
    "knocks": [
        knock(b"\x5e" * 32, b"alice", b"bob", 1_800_000_000, b"\x00" * 6),
        knock(b"\x5e" * 32, b"bob", b"alice", 1_800_000_000, b"\x00" * 6),
        knock(b"\x5e" * 32, b"alice", b"bob", 1_800_000_599, b"random"),
        knock(b"\x5e" * 32, b"alice", b"bob", 1_800_000_600, b"random"),
        knock(bytes(range(32)), b"", b"\x02" * 32 + b"db.tools", 0, b"\xff" * 6),
    ],
})
write("handshake.json", handshake())

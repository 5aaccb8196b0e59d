"""MQTT packets by hand, for both versions: built as told, right or wrong, and taken apart without mercy."""

import struct
from dataclasses import dataclass, field

from rawmqtt import CONNACK, DISCONNECT, PUBACK, PUBCOMP, PUBLISH, PUBREC, Closed, Raw, packet, text, varint

PUBREL, UNSUBACK = 6, 11

# Properties by how they are written.
BYTE = {1, 23, 25, 36, 37, 40, 41, 42}
TWO = {19, 33, 34, 35}
FOUR = {2, 17, 24, 39}
VARINT = {11}
TEXT = {3, 8, 18, 21, 26, 28, 31}
BINARY = {9, 22}
PAIR = {38}


def properties(pairs):
    """A property section: [(identifier, value), ...] in that order."""
    out = b""
    for key, value in pairs:
        out += bytes([key])
        if key in BYTE:
            out += bytes([value])
        elif key in TWO:
            out += struct.pack(">H", value)
        elif key in FOUR:
            out += struct.pack(">I", value)
        elif key in VARINT:
            out += varint(value)
        elif key in PAIR:
            out += text(value[0]) + text(value[1])
        else:
            out += text(value)
    return varint(len(out)) + out


def take_varint(b):
    value = shift = 0
    for at, byte in enumerate(b):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, b[at + 1:]
    raise AssertionError(f"no end of a length in {b!r}")


def take_text(b):
    n = struct.unpack(">H", b[:2])[0]
    assert len(b) >= 2 + n, b
    return b[2:2 + n], b[2 + n:]


def take_properties(b):
    """[(identifier, value), ...] and the rest."""
    n, b = take_varint(b)
    section, rest = b[:n], b[n:]
    assert len(section) == n, "properties longer than their packet"
    found = []
    while section:
        key, section = section[0], section[1:]
        if key in BYTE:
            value, section = section[0], section[1:]
        elif key in TWO:
            value, section = struct.unpack(">H", section[:2])[0], section[2:]
        elif key in FOUR:
            value, section = struct.unpack(">I", section[:4])[0], section[4:]
        elif key in VARINT:
            value, section = take_varint(section)
        elif key in PAIR:
            name, section = take_text(section)
            value, section = take_text(section)
            value = (name.decode(), value.decode())
        else:
            value, section = take_text(section)
            value = value.decode() if key in TEXT else value
        found.append((key, value))
    return found, rest


@dataclass
class Message:
    """A PUBLISH that came."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    packet_id: int
    properties: list = field(default_factory=list)

    def value(self, key):
        return next((v for k, v in self.properties if k == key), None)

    def values(self, key):
        return [v for k, v in self.properties if k == key]


def connect_packet(version, client_id, clean=True, keepalive=60, props=(), will=None, user=None, password=None,
                   name="MQTT", level=None, flags=None):  # fmt: skip
    """CONNECT. `will`: dict(topic, payload, qos, retain, props). `flags` replaces the right connect flags."""
    byte = clean << 1
    payload = text(client_id)
    if will:
        byte |= 4 | will.get("qos", 0) << 3 | will.get("retain", False) << 5
        payload += properties(will.get("props", ())) if version == 5 else b""
        payload += text(will["topic"]) + text(will.get("payload", b"gone"))
    if user is not None:
        byte |= 128
        payload += text(user)
    if password is not None:
        byte |= 64
        payload += text(password)
    head = text(name) + bytes([version if level is None else level, byte if flags is None else flags])
    head += struct.pack(">H", keepalive)
    return packet(0x10, head + (properties(props) if version == 5 else b"") + payload)


class Client(Raw):
    """A connection that shows everything that comes back. Version 4 is 3.1.1."""

    def __init__(self, port, version, client_id="", connect=True, code=0, timeout=10, **more):
        super().__init__(port, version=version, connect=False, timeout=timeout)
        self.present, self.granted, self.code = None, [], None
        self.early = []  # messages that came while the end of an exchange was awaited
        if connect:
            self.send(connect_packet(version, client_id, **more))
            self.connack(code)

    def connack(self, code=0):
        kind, flags, body = self.read()
        assert (kind, flags) == (CONNACK, 0), f"CONNACK, not {kind} {flags} {body!r}"
        assert body[0] in (0, 1), f"reserved bits of the acknowledge flags: {body[0]}"
        self.present, self.code = body[0] == 1, body[1]
        assert self.code == code, f"CONNACK with {self.code:#x}, not {code:#x}"
        if self.version == 5:
            self.granted, rest = take_properties(body[2:])
            assert rest == b"", rest
        else:
            assert len(body) == 2, body

    def grant(self, key):
        return next((v for k, v in self.granted if k == key), None)

    def publish_raw(self, topic, payload=b"x", qos=0, packet_id=None, retain=False, dup=False, props=()):
        """Sends a PUBLISH; returns its packet identifier."""
        if packet_id is None:
            packet_id = self._id() if qos else 0
        body = text(topic) + (struct.pack(">H", packet_id) if qos else b"")
        body += properties(props) if self.version == 5 else b""
        self.send(packet(0x30 | qos << 1 | retain | dup << 3, body + payload))
        return packet_id

    def expect(self, kind, packet_id=None, code=None):
        """The next packet is this one; gives its body."""
        found, flags, body = self.read()
        assert found == kind, f"packet {kind}, not {found}: {body!r}"
        assert flags == (2 if kind == PUBREL else 0), f"flags {flags} of packet {kind}"
        if packet_id is not None:
            assert struct.unpack(">H", body[:2])[0] == packet_id, f"identifier {packet_id}, not {body[:2]!r}"
        if code is not None:
            had = body[2] if len(body) > 2 else 0
            assert had == code, f"code {code:#x}, not {had:#x}"
        return body

    def deliver(self, topic, payload=b"x", qos=1, **more):
        """Publishes and goes through the whole exchange; returns the reason code."""
        packet_id = self.publish_raw(topic, payload, qos, **more)
        if qos == 0:
            return 0
        body = self.expect(PUBACK if qos == 1 else PUBREC, packet_id)
        code = body[2] if len(body) > 2 else 0
        if qos == 2 and code < 0x80:
            self.ack(PUBREL, packet_id)
            self.expect(PUBCOMP, packet_id, 0)
        return code

    def ack(self, kind, packet_id, code=None, props=None):
        body = struct.pack(">H", packet_id)
        if code is not None:
            body += bytes([code])
        if props is not None:
            body += properties(props)
        self.send(packet(kind << 4 | (2 if kind == PUBREL else 0), body))

    def subscribe_raw(self, *filters, packet_id=None, props=()):
        """SUBSCRIBE to (filter, options) pairs; returns the packet identifier."""
        packet_id = self._id() if packet_id is None else packet_id
        body = struct.pack(">H", packet_id) + (properties(props) if self.version == 5 else b"")
        self.send(packet(0x82, body + b"".join(text(f) + bytes([o]) for f, o in filters)))
        return packet_id

    def subscribe(self, *filters, props=()):
        """SUBSCRIBE to (filter, options) pairs or filters; the codes of its SUBACK."""
        pairs = [(f, 0) if isinstance(f, (str, bytes)) else f for f in filters]
        packet_id = self.subscribe_raw(*pairs, props=props)
        return self.codes(9, packet_id)

    def codes(self, kind, packet_id):
        body = self.expect(kind, packet_id)[2:]
        if self.version == 5:
            _, body = take_properties(body)
        return list(body)

    def unsubscribe(self, *filters):
        packet_id = self._id()
        body = struct.pack(">H", packet_id) + (b"\0" if self.version == 5 else b"")
        self.send(packet(0xa2, body + b"".join(map(text, filters))))
        return self.codes(UNSUBACK, packet_id)

    def message(self, timeout=10, ack=True):
        """The next packet is a PUBLISH; its exchange is completed unless `ack` says no."""
        kind, flags, body = self.early.pop(0) if self.early else self.read(timeout)
        assert kind == PUBLISH, f"PUBLISH, not {kind}: {body!r}"
        topic, rest = take_text(body)
        qos, packet_id, props = flags >> 1 & 3, 0, []
        if qos:
            packet_id, rest = struct.unpack(">H", rest[:2])[0], rest[2:]
            assert packet_id, "identifier 0"
        if self.version == 5:
            props, rest = take_properties(rest)
        if ack and qos == 1:
            self.ack(PUBACK, packet_id)
        if ack and qos == 2:
            self.ack(PUBREC, packet_id)
            while (found := self.read())[0] == PUBLISH:
                self.early.append(found)
            assert found[0] == PUBREL and found[2] == struct.pack(">H", packet_id), f"PUBREL, not {found}"
            self.ack(PUBCOMP, packet_id)
        return Message(topic.decode(), rest, qos, bool(flags & 1), bool(flags & 8), packet_id, props)

    def silence(self, seconds=0.3):
        """Nothing comes; proven by a PINGRESP that is the next packet, where the connection still lives."""
        try:
            found = self.early.pop(0) if self.early else self.read(seconds)
        except TimeoutError:
            self.ping()
            return
        raise AssertionError(f"silence, not {found}")

    def ping(self):
        self.send(b"\xc0\0")
        self.expect(13)

    def refused(self, *codes):
        """The server ends the connection; in MQTT 5 with DISCONNECT and one of these codes, in 3.1.1 without a word."""
        said = []
        try:
            while True:
                said.append(self.read(10))
        except Closed:
            pass
        if self.version == 5:
            assert said and said[-1][0] == DISCONNECT, f"no DISCONNECT, but {said}"
            code = said[-1][2][0] if said[-1][2] else 0
            assert code in codes, f"DISCONNECT with {code:#x}, not {[hex(c) for c in codes]}"
        else:
            assert all(kind != DISCONNECT for kind, _, _ in said), said
        return said

    def hang_up(self):
        """Goes without a goodbye."""
        self.socket.close()

    def bye(self, code=None, props=None):
        """DISCONNECT, and waits until the server has closed."""
        body = b"" if code is None else bytes([code])
        if props is not None:
            body += properties(props)
        self.send(packet(0xe0, body))
        try:
            while True:
                self.read(10)
        except Closed:
            self.socket.close()

"""A small MQTT client over a bare socket that may send anything, right or wrong, and shows what comes back.

No retries, no threads, no checks of its own: client libraries refuse to send most of what a server has to stand.
"""

import socket
import struct
import time

CONNACK, PUBLISH, PUBACK, PUBREC, PUBCOMP, SUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 5, 7, 9, 13, 14


class Closed(Exception):
    """The server closed the connection."""


def varint(n):
    out = bytearray()
    while True:
        n, low = divmod(n, 128)
        out.append(low | (128 if n else 0))
        if not n:
            return bytes(out)


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack(">H", len(raw)) + raw


def packet(first, body):
    return bytes([first]) + varint(len(body)) + body


class Raw:
    """One connection; version 4 is MQTT 3.1.1, 5 is MQTT 5."""

    def __init__(self, port, client_id="raw", version=5, connect=True, timeout=10, keepalive=60):
        self.version = version
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.inbox = []  # messages that came while something else was awaited
        self.next_id = 1
        if connect:
            self.send(self.connect_packet(client_id, keepalive))
            kind, _, body = self.read(timeout)
            assert kind == CONNACK and body[1] == 0, f"refused: {body!r}"

    def connect_packet(self, client_id, keepalive=60):
        properties = b"\0" if self.version == 5 else b""
        return packet(0x10, text("MQTT") + bytes([self.version, 2]) + struct.pack(">H", keepalive) + properties
                      + text(client_id))  # fmt: skip

    def send(self, data):
        self.socket.sendall(data)

    def publish_packet(self, topic, payload, qos=1, packet_id=None, content_type=None, retain=False, dup=False):
        packet_id = packet_id if packet_id is not None else self._id()
        body = text(topic)
        if qos:
            body += struct.pack(">H", packet_id)
        if self.version == 5:
            properties = b"\x03" + text(content_type) if content_type else b""
            body += varint(len(properties)) + properties
        return packet(0x30 | qos << 1 | retain | dup << 3, body + payload)

    def _id(self):
        self.next_id = self.next_id % 65535 + 1
        return self.next_id

    def publish(self, topic, payload, timeout=10, **more):
        """Publishes at QoS 1 and returns (reason code, reason string) of its PUBACK; 3.1.1 has no reasons."""
        packet_id = self._id()
        self.send(self.publish_packet(topic, payload, packet_id=packet_id, **more))
        until = time.monotonic() + timeout
        while True:
            kind, flags, body = self.read(max(0.01, until - time.monotonic()))
            if kind == PUBLISH:
                self.inbox.append((flags, body))
            if kind == PUBACK and struct.unpack(">H", body[:2])[0] == packet_id:
                return reason(body[2:])
            if kind == DISCONNECT:
                raise Closed(reason(body))

    def subscribe(self, *filters, qos=0):
        body = struct.pack(">H", self._id()) + (b"\0" if self.version == 5 else b"")
        self.send(packet(0x82, body + b"".join(text(f) + bytes([qos]) for f in filters)))
        kind, _, body = self.read(10)
        assert kind == SUBACK, kind
        return list(body[-len(filters):])

    def read(self, timeout=10):
        """The next packet: (kind, flags, body). `Closed` if the connection ends, TimeoutError if nothing comes."""
        until = time.monotonic() + timeout
        while True:
            found = self._take()
            if found:
                return found
            self.socket.settimeout(max(0.01, until - time.monotonic()))
            try:
                more = self.socket.recv(65536)
            except (ConnectionResetError, BrokenPipeError) as e:
                raise Closed(str(e)) from None
            if not more:
                raise Closed("end of stream")
            self.buffer += more

    def _take(self):
        length = shift = 0
        for at, byte in enumerate(self.buffer[1:5]):
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                end = 2 + at + length
                if len(self.buffer) < end:
                    return None
                first, body = self.buffer[0], self.buffer[2 + at:end]
                self.buffer = self.buffer[end:]
                return first >> 4, first & 15, body
        return None

    def message(self, timeout=10):
        """The next received message: (topic, payload)."""
        while True:
            if self.inbox:
                kind, (flags, body) = PUBLISH, self.inbox.pop(0)
            else:
                kind, flags, body = self.read(timeout)
            if kind == PUBLISH:
                n = struct.unpack(">H", body[:2])[0]
                topic, rest = body[2:2 + n].decode(), body[2 + n:]
                rest = rest[2:] if flags & 6 else rest
                if self.version == 5:
                    skip, rest = rest[0], rest[1:]
                    rest = rest[skip:]
                return topic, rest

    def ended(self, timeout=10):
        """Waits for the server to end the connection; the reason of its DISCONNECT, if it sent one."""
        why = None
        try:
            while True:
                kind, _, body = self.read(timeout)
                if kind == DISCONNECT or (kind == CONNACK and body[1]):
                    why = reason(body) if kind == DISCONNECT else (body[1], "")
        except Closed:
            return why or (None, "")

    def close(self):
        self.socket.close()


def reason(body):
    """Reason code and reason string of the rest of an acknowledgement or of a DISCONNECT."""
    if not body:
        return 0, ""
    code, words = body[0], ""
    at, end = 2, len(body)
    if len(body) > 1 and body[1] >= 128:
        at = 3
    while at < end:
        if body[at] == 31:
            n = struct.unpack(">H", body[at + 1:at + 3])[0]
            words = body[at + 3:at + 3 + n].decode()
            break
        if body[at] == 38:
            for _ in range(2):
                at += 2 + struct.unpack(">H", body[at + 1:at + 3])[0]
            at += 1
        else:
            break
    return code, words

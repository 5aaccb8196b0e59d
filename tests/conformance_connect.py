"""Conformance: CONNECT, CONNACK, DISCONNECT, sessions, wills, keep alive, and packets that are none."""

import struct
import time

from rawmqtt import CONNACK, DISCONNECT, Closed, packet, text
from rawpackets import connect_packet, take_properties
from statements import case

HALF = 0.5


def closed(c, but=()):
    """The connection ends; what came before it. Only packets of these kinds may have come."""
    said = []
    try:
        while True:
            said.append(c.read(10))
    except Closed:
        pass
    assert all(kind in but for kind, _, _ in said), said
    return said


@case("the first packet is CONNECT, and there is one", "3.1.0-1..2", "3.1.0-1..2 4.13.1-1")
def first_packet(b):
    c = b.open()
    c.send(b"\xc0\0")
    closed(c)
    c = b.client()
    c.send(connect_packet(b.version, b.id("again")))
    c.refused(0x82)


@case("protocol name and level", "3.1.2-1..2 3.2.2-4..5", "3.1.2-1..2 3.2.2-6..8")
def protocol(b):
    c = b.open()
    c.send(connect_packet(b.version, "x", name="MQTX"))
    closed(c, but=(CONNACK,) if b.v5 else ())
    for level in (0, 3, 6, 200):
        c = b.open()
        c.send(connect_packet(b.version, "x", level=level))
        said = closed(c, but=(CONNACK,))
        assert len(said) == 1 and said[0][2][0] == 0, said
        assert said[0][2][1] == (0x84 if level > 5 else 1), said
    c = b.open()
    c.send(connect_packet(3, "x", name="MQIsdp"))
    assert closed(c, but=(CONNACK,))[0][2] == b"\0\x01"


@case("reserved flags and the fields that flags promise",
      "3.1.2-3 3.1.2-9 3.1.2-11 3.1.2-13..15 3.1.2-18..22 3.1.3-1 3.1.3-3 3.1.4-1 3.2.2-6",
      "3.1.2-3 3.1.2-9 3.1.2-11..13 3.1.2-16..19 3.1.3-1 3.1.3-3 3.1.4-1..2")  # fmt: skip
def connect_flags(b):
    props = b"\0" if b.v5 else b""

    def attempt(flags, payload):
        c = b.open()
        body = text("MQTT") + bytes([b.version, flags]) + struct.pack(">H", 60) + props + payload
        c.send(packet(0x10, body))
        return c

    me, will = text(b.id("c")), props + text("w") + text("gone")
    for flags, payload in (
        (3, me),  # the reserved flag
        (2 | 8, me),  # QoS without a will
        (2 | 32, me),  # retained without a will
        (2 | 4 | 24, me + will),  # QoS 3
        (2 | 4, me),  # a will that is not there
        (2 | 128, me),  # a user name that is not there
        (2 | 128 | 64, me + text("u")),  # a password that is not there
        (2, me + text("u")),  # something that no flag promises
        (2 | 128, me + text("u") + text("p")),
        (2, b""),  # no client identifier
    ):
        said = closed(attempt(flags, payload), but=(CONNACK,) if b.v5 else ())
        assert all(body[0] == 0 and body[1] >= 0x80 for _, _, body in said), (flags, said)
    for qos in (0, 1, 2):
        c = attempt(2 | 4 | qos << 3 | 128 | 64, me + will + text("u") + text("p"))
        c.connack()
        c.bye()
    c = attempt(2 | 64, me + text("p"))  # a password alone
    if b.v5:
        c.connack()
    else:
        closed(c)


@case("strings of CONNECT are UTF-8 without U+0000", "1.5.3-1..2 3.1.3-4 3.1.3-10..11",
      "1.5.4-1..2 1.5.7-1 3.1.3-4 3.1.3-11..12")  # fmt: skip
def connect_strings(b):
    bad = (b"\xff\xfe", b"a\0b", b"\xed\xa0\x80", b"\xc0\x80")
    for wrong in bad:
        kinds = [dict(client_id=wrong), dict(client_id=b.id("c"), will=dict(topic=wrong)),
                 dict(client_id=b.id("c"), user=wrong)]  # fmt: skip
        if b.v5:
            kinds.append(dict(client_id=b.id("c"), props=[(38, (wrong, "v"))]))
            kinds.append(dict(client_id=b.id("c"), props=[(38, ("k", wrong))]))
            kinds.append(dict(client_id=b.id("c"), will=dict(topic="t", props=[(38, (wrong, "v"))])))
            kinds.append(dict(client_id=b.id("c"), will=dict(topic="t", props=[(3, wrong)])))
            kinds.append(dict(client_id=b.id("c"), will=dict(topic="t", props=[(8, wrong)])))
        for kind in kinds:
            c = b.open()
            c.send(connect_packet(b.version, **kind))
            said = closed(c, but=(CONNACK,) if b.v5 else ())
            assert all(body[1] >= 0x80 for _, _, body in said), (kind, said)
    c = b.open()
    c.send(connect_packet(b.version, b.id("c"), will=dict(topic="a/#")))
    said = closed(c, but=(CONNACK,) if b.v5 else ())
    assert all(body[1] == 0x90 for _, _, body in said), said


@case("U+FEFF is a character like any other", "1.5.3-3 4.7.3-4", "1.5.4-3 4.7.3-4")
def byte_order_mark(b):
    c, other = b.client("\ufeffmarked"), b.client("marked")
    c.ping(), other.ping()  # two clients, not one
    c.subscribe("\ufeff" + b.topic("x"), b.topic("\u00e9"))
    other.deliver(b.topic("x"), b"without")
    other.deliver(b.topic("e\u0301"), b"other form")
    other.deliver("\ufeff" + b.topic("x"), b"with")
    m = c.message()
    assert (m.topic, m.payload) == ("\ufeff" + b.topic("x"), b"with")
    c.silence()


@case("client identifiers", "3.1.3-2 3.1.3-5..9", "3.1.3-2 3.1.3-5..8 3.2.2-16")
def client_identifiers(b):
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for name in (alphabet[:23], alphabet[20:43], alphabet[39:], f"v{b.version}"):
        c = b.open()
        c.send(connect_packet(b.version, name))
        c.connack()
        c.bye()
    names = set()
    for _ in range(2):
        c = b.open()
        c.send(connect_packet(b.version, ""))
        c.connack()
        c.ping()
        names.add(c.grant(18))
    if b.v5:
        assert len(names) == 2 and None not in names, names
        c = b.client("with a name")
        assert c.grant(18) is None
    c = b.open()
    c.send(connect_packet(b.version, "", clean=False))
    c.connack(0 if b.v5 else 2)
    if not b.v5:
        closed(c)
    c = b.open()
    c.send(connect_packet(b.version, "x" * 2000))
    c.connack(0x85 if b.v5 else 2)
    closed(c)


@case("properties of CONNECT that cannot be", v5="3.1.4-1 3.2.2-7")
def connect_properties(b):
    for props, code in (
        ([(33, 0)], 0x82),
        ([(39, 0)], 0x82),
        ([(33, 1), (33, 1)], 0x82),
        ([(17, 1), (17, 1)], 0x82),
        ([(34, 1), (34, 1)], 0x82),
        ([(25, 2)], 0x82),
        ([(23, 2)], 0x82),
        ([(25, 1), (25, 1)], 0x82),
        ([(22, b"data")], 0x82),
        ([(35, 1)], 0x81),  # a topic alias belongs to PUBLISH
        ([(11, 1)], 0x81),
    ):
        c = b.open()
        c.send(connect_packet(5, b.id("c"), props=props))
        said = closed(c, but=(CONNACK,))
        assert said and said[0][2][1] in (code, 0x81, 0x82), (props, said)
    for props in ([(1, 2)], [(24, 1), (24, 1)], [(2, 1), (2, 1)], [(35, 1)], [(8, "a/#")], [(8, "")]):
        c = b.open()
        c.send(connect_packet(5, b.id("c"), will=dict(topic="t", props=props)))
        said = closed(c, but=(CONNACK,))
        assert said and said[0][2][1] >= 0x80, (props, said)
    # A section that is longer than the packet, and one that is cut in the middle of a property.
    for section in (b"\x05\x21\0", b"\x02\x21\0"):
        c = b.open()
        c.send(packet(0x10, text("MQTT") + b"\x05\x02\0\x3c" + section + text("x")))
        closed(c, but=(CONNACK,))


@case("a refused CONNECT: nothing that comes behind it is heeded, and the client hears why", "3.1.4-5",
      "3.1.4-6 3.14.0-1")  # fmt: skip
def refused_connect(b):
    watcher = b.client("watcher")
    watcher.subscribe(b.topic("t"))
    c = b.open()
    c.send(connect_packet(b.version, "x" * 2000) + packet(0x30, text(b.topic("t")) + (b"\0" if b.v5 else b"") + b"heard"))
    said = closed(c, but=(CONNACK,))
    assert said and said[0][2][1] == (0x85 if b.v5 else 2), said
    watcher.silence()


@case("CONNACK comes first, once, and grants what it must", "3.1.4-4 3.2.0-1", "3.1.4-5 3.2.0-1..2 3.2.2-1 3.1.2-28")
def connack(b):
    k = b.keeper()
    k.subscribe((b.topic("t"), 1))
    k.hang_up()
    b.client("p").deliver(b.topic("t"), b"waits", 1)
    props = [(17, 60), (25, 1), (23, 1)] if b.v5 else ()
    c = b.client("keeper", clean=False, props=props)  # the constructor insists that CONNACK is the first packet
    assert c.present
    assert c.message().payload == b"waits"
    c.silence()
    if b.v5:
        assert c.grant(26) is None, "nothing like response information is given"
        assert c.grant(21) is None and c.grant(33) > 0 and c.grant(34) > 0 and c.grant(39) > 0


@case("sessions: clean, kept, resumed, and what CONNACK says of them",
      "3.1.2-4..6 3.1.4-3 3.2.2-1..3 4.1.0-2 4.5.0-1",
      "3.1.2-4..6 3.1.2-23 3.1.4-4 3.2.2-2..3 4.1.0-1..2 4.5.0-1", seconds=4)  # fmt: skip
def sessions(b):
    k = b.keeper()
    assert not k.present
    assert k.subscribe((b.topic("t"), 2)) == [2]
    k.hang_up()
    p = b.client("p")
    for qos in (1, 2):
        p.deliver(b.topic("t"), b"%d" % qos, qos)
    k = b.keeper()
    assert k.present
    assert [k.message().payload for _ in range(2)] == [b"1", b"2"]
    k.bye()
    k = b.keeper(clean=True)
    assert not k.present, "a clean start"
    p.deliver(b.topic("t"), b"gone", 1)
    k.silence()
    k.hang_up()
    if b.v5:
        k = b.keeper(seconds=1)
        k.subscribe((b.topic("t"), 1))
        k.bye()
        time.sleep(2)
        k = b.keeper(seconds=0)
        assert not k.present, "its second is over"
        k.subscribe((b.topic("t"), 1))
        k.hang_up()
        time.sleep(0.3)
        assert not b.keeper().present, "no expiry: it ends with the connection"
    else:
        k = b.client("keeper", clean=True)
        k.subscribe((b.topic("t"), 1))
        k.hang_up()
        time.sleep(0.3)
        assert not b.keeper().present, "a clean session leaves nothing"


@case("DISCONNECT changes the session's expiry, but not from none", v5="3.1.2-23 3.14.2-1", seconds=3)
def disconnect_expiry(b):
    k = b.keeper(seconds=60)
    k.bye(0, [(17, 0)])
    assert not b.keeper(seconds=0).present
    k = b.keeper(seconds=0)
    k.send(packet(0xe0, b"\0\x05\x11\0\0\0\x09"))
    k.refused(0x82)
    k = b.keeper(seconds=1)
    k.bye(0, [(17, 60)])
    time.sleep(1.7)
    assert b.keeper(seconds=0).present, "made longer"


@case("a second connection of a client takes over", "3.1.4-2", "3.1.4-3")
def takeover(b):
    one = b.keeper()
    two = b.keeper()
    one.refused(0x8E)
    assert two.present
    two.ping()


@case("a will is published when the connection is lost, and only then",
      "3.1.2-8 3.1.2-10 3.1.2-12 3.1.2-16..17 3.14.4-3",
      "3.1.2-7..8 3.1.2-10 3.1.2-14..15 3.14.4-3", seconds=3)  # fmt: skip
def wills(b):
    w = b.client("watcher")
    w.subscribe((b.topic("will"), 2))
    for qos in (0, 1, 2):
        c = b.client(will=dict(topic=b.topic("will"), payload=b"q%d" % qos, qos=qos))
        c.hang_up()
        m = w.message()
        assert (m.payload, m.qos, m.retain) == (b"q%d" % qos, qos, False)
    b.client(will=dict(topic=b.topic("will"))).bye()
    w.silence()
    b.client().hang_up()
    w.silence()
    # Broken protocol, taken over: it is published, once.
    c = b.client(will=dict(topic=b.topic("will"), payload=b"broken"))
    c.send(b"\xc1\0")
    assert w.message().payload == b"broken"
    c = b.client(will=dict(topic=b.topic("will"), payload=b"taken"))
    b.client().ping()
    assert w.message().payload == b"taken"
    w.silence()
    # Not retained, retained.
    late = b.client("late")
    assert late.subscribe(b.topic("will")) == [0]
    late.silence()
    b.client(will=dict(topic=b.topic("will"), payload=b"kept", retain=True)).hang_up()
    assert w.message().payload == b"kept"
    late = b.client("late")
    late.subscribe(b.topic("will"))
    m = late.message()
    assert (m.payload, m.retain) == (b"kept", True)
    b.client().deliver(b.topic("will"), b"", 1, retain=True)
    if b.v5:
        w.message()
        for code in (0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99):
            c = b.client(will=dict(topic=b.topic("will"), payload=b"%d" % code))
            c.bye(code)
            assert w.message().payload == b"%d" % code, "DISCONNECT with another code than 0"
        b.client(will=dict(topic=b.topic("will"))).bye(0, [(31, "all is well")])
        w.silence()


@case("a will waits for its delay, or the end of the session, and for the client to come back",
      v5="3.1.2-8 3.1.3-9", seconds=6)  # fmt: skip
def will_delay(b):
    w = b.client("watcher")
    w.subscribe((b.topic("will"), 1))

    def leaves(name, delay, expiry, payload):
        will = dict(topic=b.topic("will"), payload=payload, props=[(24, delay)])
        b.client(name, will=will, props=[(17, expiry)], clean=False).hang_up()

    leaves("back", 1, 60, b"not this")
    time.sleep(HALF)
    assert b.keeper("back").present
    time.sleep(1)
    w.silence()
    leaves("away", 1, 60, b"after its delay")
    began = time.monotonic()
    assert w.message().payload == b"after its delay"
    assert 0.8 < time.monotonic() - began < 2.5
    leaves("ends", 60, 1, b"with its session")
    assert w.message().payload == b"with its session"
    leaves("cleaned", 60, 60, b"by a clean start")
    time.sleep(0.2)
    b.client("cleaned")
    assert w.message().payload == b"by a clean start"
    leaves("taken", 60, 60, b"not this")
    will = dict(topic=b.topic("will"), props=[(24, 60)])
    one = b.client("taken", will=will, props=[(17, 60)], clean=False)
    two = b.client("taken", props=[(17, 60)], clean=False)
    one.refused(0x8E)
    two.ping()
    w.silence()


@case("a will's properties go with it, in order", v5="3.1.3-10 3.3.2-17..18")
def will_properties(b):
    w = b.client("watcher")
    w.subscribe(b.topic("will"))
    pairs = [("b", "1"), ("a", "2"), ("b", "3"), ("", "")]
    props = [(38, p) for p in pairs[:2]] + [(1, 1), (3, "text/plain"), (9, b"\0\x01"), (8, "answer/here"), (2, 100)]
    props += [(38, p) for p in pairs[2:]]
    b.client(will=dict(topic=b.topic("will"), props=props)).hang_up()
    m = w.message()
    assert m.values(38) == pairs, m
    assert [m.value(k) for k in (1, 3, 9, 8)] == [1, "text/plain", b"\0\x01", "answer/here"], m
    assert 90 < m.value(2) <= 100 and m.value(24) is None, m


@case("keep alive", "3.1.2-24", "3.1.2-22 3.2.2-22", seconds=5)
def keep_alive(b):
    w = b.client("watcher")
    w.subscribe(b.topic("will"))
    c = b.client(keepalive=2, will=dict(topic=b.topic("will"), payload=b"silent"))
    assert c.grant(19) is None, "its own keep alive counts"
    began = time.monotonic()
    time.sleep(1.5)
    c.ping()
    assert w.message(timeout=8).payload == b"silent"
    gone = time.monotonic() - began
    assert 3.5 < gone < 6.5, f"gone after {gone:.1f} s"
    c.refused(0x8D)
    if b.v5:
        assert b.client("long", keepalive=1000).grant(19) == 600
        assert b.client("never", keepalive=0).grant(19) == 600


@case("PINGREQ is answered", "3.12.4-1", "3.12.4-1")
def ping(b):
    c = b.client()
    for _ in range(3):
        c.ping()


@case("flag bits of fixed headers", "2.2.2-1..2 3.6.1-1 3.8.1-1 3.10.1-1 3.14.1-1",
      "2.1.3-1 3.6.1-1 3.8.1-1 3.10.1-1 3.14.1-1 3.15.1-1 4.13.1-1")  # fmt: skip
def fixed_header_flags(b):
    props = b"\0" if b.v5 else b""
    subscribe = b"\0\x01" + props + text("t") + b"\0"
    for first, body in (
        *((0x60 | f, b"\0\x01") for f in (0, 1, 3, 6, 10)),
        *((0x80 | f, subscribe) for f in (0, 1, 3, 6, 10)),
        *((0xA0 | f, b"\0\x01" + props + text("t")) for f in (0, 1, 3, 6, 10)),
        *((0xE0 | f, b"") for f in (1, 2, 8)),
        *((0x40 | f, b"\0\x01") for f in (1, 2, 8)),
        *((0xC0 | f, b"") for f in (1, 2, 8)),
        (0xF1, b""),
        (0x00, b""),
    ):
        c = b.client()
        c.send(packet(first, body))
        c.refused(0x81)
    if not b.v5:
        c = b.client()
        c.send(packet(0xF0, b""))
        c.refused()


@case("lengths in their shortest form, of four bytes at most", v5="1.5.5-1")
def lengths(b):
    c = b.client()
    c.send(b"\xc0\x80\x00")
    c.refused(0x81)
    c = b.client()
    c.send(b"\x30\xff\xff\xff\xff\x01")
    c.refused(0x81)
    c = b.client()
    c.send(packet(0x30, text("t") + b"\x80\x00" + b"x"))
    c.refused(0x81)


@case("a section of properties is there, even if it is empty", v5="2.2.2-1")
def no_properties(b):
    for first, body in ((0x30, text("t")), (0x82, b"\0\x01"), (0xA2, b"\0\x01")):
        c = b.client()
        c.send(packet(first, body))
        c.refused(0x81, 0x82)
    c = b.client()
    c.subscribe(b.topic("t"))  # the client insists on a section in every packet that has one
    c.deliver(b.topic("t"))
    assert c.message().properties == []


@case("who breaks the protocol is sent away, and nothing follows the goodbye", "4.8.0-1",
      "3.14.4-1..2 3.14.2-1..2 4.13.1-1 4.13.2-1")  # fmt: skip
def goodbye(b):
    for wrong in (b"\x20\x02\0\0", b"\x90\x03\0\x01\0", b"\xb0\x02\0\x01", b"\xd0\0", b"\x40\x02\0\0",
                  b"\x62\x02\0\0", packet(0x36, text("t") + b"\0\x01\0")):  # fmt: skip
        c = b.client()
        c.subscribe((b.topic("t"), 0))
        c.send(wrong)
        said = c.refused(0x81, 0x82)
        if b.v5:
            body = said[-1][2]
            props = take_properties(body[1:])[0] if len(body) > 1 else []
            assert all(key != 17 for key, _ in props), f"a session expiry from a server: {props}"
    if b.v5:
        c = b.client()
        c.send(packet(0xE0, b"\x01"))  # not a reason code of DISCONNECT
        c.refused(0x81, 0x82)


@case("no answer is larger than the client takes", v5="3.1.2-24 3.2.2-19 3.14.2-3 3.4.2-2 3.5.2-2")
def maximum_packet(b):
    c = b.client(props=[(39, 30)])
    c.deliver("$SYS/x", b"x", 1)  # refused: the reason string is left out, or the packet is within 30 bytes
    packet_id = c.publish_raw("$SYS/x", b"x", 2)
    assert len(c.expect(5, packet_id, 0x87)) <= 28
    c.send(b"\xc1\0")
    said = c.refused(0x81)
    assert len(said[-1][2]) <= 28, said
    c = b.open()
    c.send(connect_packet(5, "x" * 2000, props=[(39, 12)]))
    said = closed(c, but=(CONNACK,))
    assert said[0][2] == b"\0\x85\0", said
    c = b.open()
    c.send(connect_packet(5, b.id("tiny"), props=[(39, 4)]))
    assert closed(c) == []
    c = b.client("few", props=[(39, 24)])
    c.subscribe_raw(*((f"t{n}", 0) for n in range(30)))
    c.refused(0x95)


@case("a problem is told only to those who want to know", v5="3.1.2-29 3.4.2-1 3.5.2-1")
def problem_information(b):
    for wanted in (1, 0):
        c = b.client(props=[(23, wanted)])
        for qos, kind in ((1, 4), (2, 5)):
            packet_id = c.publish_raw("$SYS/x", b"x", qos)
            body = c.expect(kind, packet_id, 0x87)
            assert (len(body) > 3) == bool(wanted), (wanted, body)


@case("extended authentication is refused", v5="4.12.0-1 4.12.0-6")
def authentication(b):
    c = b.open()
    c.send(connect_packet(5, b.id("c"), props=[(21, "SCRAM-SHA-1"), (22, b"x")]))
    c.connack(0x8C)
    closed(c)
    c = b.client()
    assert c.grant(21) is None
    c.send(packet(0xF0, b"\x18\0"))
    c.refused(0x82)


@case("packets in pieces, and many in one", "4.2.0-1", "4.2-1")
def stream(b):
    c = b.open()
    wire = connect_packet(b.version, b.id("c")) + b"\xc0\0" * 3
    for at in range(len(wire)):
        c.send(wire[at:at + 1])
    c.connack()
    for _ in range(3):
        c.expect(13)


@case("a client that goes on sending after it was sent away can still read why", "4.8.0-1", "4.13.2-1", seconds=3)
def lingering(b):
    c = b.client()
    c.send(b"\xc1\0")
    for _ in range(120):
        c.send(packet(0x30, text("t") + (b"\0" if b.v5 else b"") + b"x" * 1000))
        time.sleep(0.02)
    said = []
    try:
        while True:
            said.append(c.read(5))
    except Closed as e:
        assert "reset" not in str(e).lower(), "the connection was reset"
    if b.v5:
        assert [kind for kind, _, _ in said] == [DISCONNECT], said

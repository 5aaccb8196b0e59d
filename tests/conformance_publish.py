"""Conformance: PUBLISH and its acknowledgements, both ways; retained messages, properties, aliases, flow control."""

import struct
import time

from rawmqtt import PUBACK, PUBCOMP, PUBREC, packet, text
from rawpackets import PUBREL, properties
from statements import case


def subscriber(b, qos=2, name="s", filters=("#",), **more):
    """A client that is subscribed below the case's own topics."""
    s = b.client(name, **more)
    assert s.subscribe(*((b.topic(f), qos) for f in filters)) == [qos] * len(filters)
    return s


@case("each quality of service has its exchange", "2.3.1-1 2.3.1-4..6 3.3.1-2 3.3.4-1 4.3.1-1 4.3.2-1..2 4.3.3-1..2",
      "2.2.1-2 2.2.1-4..5 3.3.1-2 3.3.4-1 4.3.1-1 4.3.2-1..2 4.3.2-4 4.3.3-1..2 4.3.3-4 4.3.3-8 4.3.3-11")  # fmt: skip
def exchanges(b):
    s, p = subscriber(b), b.client("p")
    for qos in (0, 1, 2):
        assert p.deliver(b.topic("x"), b"payload", qos) == 0
        m = s.message()
        assert (m.qos, m.dup, m.payload) == (qos, False, b"payload"), m
    # Identifiers that are in use are not used again.
    ids = set()
    for _ in range(20):
        p.deliver(b.topic("x"), b"", 1)
        ids.add(s.message(ack=False).packet_id)
    assert len(ids) == 20 and 0 not in ids, ids


@case("what a PUBLISH must not be", "1.5.3-1..2 2.3.1-1 3.3.1-2 3.3.1-4 3.3.2-1..2 4.7.1-1 4.7.3-1..2 4.8.0-1",
      "1.5.4-1..2 3.3.1-2 3.3.1-4 3.3.2-1..2 4.7.0-1 4.7.3-1..2 4.13.1-1")  # fmt: skip
def malformed_publish(b):
    props = b"\0" if b.v5 else b""
    for first, body, codes in (
        (0x36, text("t") + b"\0\x01" + props, (0x81,)),  # QoS 3
        (0x38, text("t") + props, (0x81, 0x82)),  # DUP with QoS 0
        (0x32, text("t") + b"\0\0" + props, (0x81, 0x82)),  # identifier 0
        (0x30, text("a/+") + props, (0x81, 0x82, 0x90)),
        (0x30, text("a/#") + props, (0x81, 0x82, 0x90)),
        (0x30, text("") + props, (0x81, 0x82, 0x90)),
        (0x30, text("a\0b") + props, (0x81, 0x90)),
        (0x30, text(b"\xff") + props, (0x81, 0x90)),
        (0x30, text(b"\xed\xbf\xbf") + props, (0x81, 0x90)),
        (0x30, b"\0\x09t", (0x81,)),  # shorter than its topic
        (0x32, text("t"), (0x81,)),  # no identifier
        (0x30, b"\0", (0x81,)),
    ):
        c = b.client()
        c.send(packet(first, body))
        c.refused(*codes)


@case("what an acknowledgement must not be", "2.3.1-1 4.8.0-1", "3.6.2-1 3.7.2-1 4.13.1-1")
def malformed_acks(b):
    for first in (0x40, 0x50, 0x62, 0x70):
        for body in (b"\0\0", b"\0", b""):
            c = b.client()
            c.send(packet(first, body))
            c.refused(0x81, 0x82)
        c = b.client()
        c.send(packet(first, b"\0\x01\x05\0"))  # no such code in any of them; in 3.1.1 no code at all
        c.refused(0x81, 0x82)
    # Of identifiers that nobody uses: no fault, an answer where there is one.
    c = b.client()
    c.ack(PUBACK, 77)
    c.ack(PUBCOMP, 77)
    c.ack(PUBREL, 77)
    c.expect(PUBCOMP, 77, 0x92 if b.v5 else None)
    c.ack(PUBREC, 77)
    c.expect(PUBREL, 77, 0x92 if b.v5 else None)
    c.ping()


@case("properties that acknowledgements and DISCONNECT cannot have", v5="1.5.4-1..2 1.5.7-1 4.13.1-1")
def bad_ack_properties(b):
    for first in (0x40, 0x50, 0x62, 0x70, 0xE0):
        for props in (
            properties([(31, "a"), (31, "b")]),  # twice
            properties([(33, 5)]),  # not of these packets
            properties([(11, 5)]),
            properties([(31, b"\xff")]),
            properties([(31, "a\0")]),
            properties([(38, (b"\xff", "v"))]),
            properties([(38, ("k", "v\0"))]),
            properties([(38, ("k\0", "v"))]),
            b"\x05\x1f\0\x01",  # longer than the packet
        ):
            c = b.client()
            c.send(packet(first, (b"" if first == 0xE0 else b"\0\x01") + b"\0" + props))
            c.refused(0x81, 0x82)
    c = b.client()
    c.send(packet(0xE0, b"\0" + properties([(28, "elsewhere")])))  # a server reference is the server's to give
    c.refused(0x82, 0x81)


@case("properties that SUBSCRIBE and UNSUBSCRIBE cannot have", v5="1.5.7-1 4.13.1-1")
def bad_subscribe_properties(b):
    for first, rest in ((0x82, text("t") + b"\0"), (0xA2, text("t"))):
        for props in (
            properties([(33, 5)]),
            properties([(31, "why")]),
            properties([(38, (b"\xff", "v"))]),
            properties([(38, ("k", "v\0"))]),
            b"\x7f\x26\0\x01",
        ):
            c = b.client()
            c.send(packet(first, b"\0\x01" + props + rest))
            c.refused(0x81, 0x82)
    c = b.client()
    c.send(packet(0xA2, b"\0\x01" + properties([(11, 5)]) + text("t")))
    c.refused(0x81, 0x82)


@case("a QoS 2 message is handed on once, whatever is repeated", "4.3.3-2", "4.3.3-8 4.3.3-10..12 4.3.3-9")
def exactly_once(b):
    s, p = subscriber(b), b.client("p")
    p.publish_raw(b.topic("x"), b"once", 2, packet_id=9)
    p.expect(PUBREC, 9)
    for _ in range(3):
        p.publish_raw(b.topic("x"), b"once", 2, packet_id=9, dup=True)
        p.expect(PUBREC, 9)
    p.ack(PUBREL, 9)
    p.expect(PUBCOMP, 9)
    assert s.message().payload == b"once"
    s.silence()
    p.publish_raw(b.topic("x"), b"new", 2, packet_id=9)
    p.expect(PUBREC, 9)
    p.ack(PUBREL, 9)
    p.expect(PUBCOMP, 9)
    assert s.message().payload == b"new", "after PUBCOMP the identifier is free"
    if b.v5:
        # Refused: what comes next under the identifier is a new message.
        p.publish_raw("$SYS/x", b"", 2, packet_id=9)
        p.expect(PUBREC, 9, 0x87)
        p.publish_raw(b.topic("x"), b"after a refusal", 2, packet_id=9)
        p.expect(PUBREC, 9, 0)
        p.ack(PUBREL, 9)
        p.expect(PUBCOMP, 9, 0)
        assert s.message().payload == b"after a refusal"


@case("a QoS 1 identifier is free after its PUBACK", "4.3.2-2", "4.3.2-5")
def at_least_once(b):
    s, p = subscriber(b), b.client("p")
    for n in range(3):
        p.publish_raw(b.topic("x"), b"%d" % n, 1, packet_id=9, dup=n > 0)
        p.expect(PUBACK, 9)
        m = s.message()
        assert (m.payload, m.dup) == (b"%d" % n, False), "DUP of the sender is not passed on"


@case("a QoS 2 message that came before the connection broke is not taken twice", "4.3.3-2 4.4.0-1",
      "4.3.3-10 4.4.0-1")  # fmt: skip
def second_half(b):
    s = subscriber(b)
    p = b.keeper("p")
    p.publish_raw(b.topic("x"), b"once", 2, packet_id=9)
    p.expect(PUBREC, 9)
    p.hang_up()
    p = b.keeper("p")
    assert p.present
    p.publish_raw(b.topic("x"), b"once", 2, packet_id=9, dup=True)
    p.expect(PUBREC, 9)
    p.ack(PUBREL, 9)
    p.expect(PUBCOMP, 9)
    assert s.message().payload == b"once"
    s.silence()


@case("what was not acknowledged is sent again on the next connection, in order, with DUP and the same identifiers",
      "3.3.1-1 3.3.1-3 4.4.0-1 4.6.0-6 4.3.2-1 4.3.3-1",
      "3.3.1-1 3.3.1-3 4.3.2-3 4.3.3-3 4.3.3-5..6 4.4.0-1", seconds=2)  # fmt: skip
def again(b):
    s = b.keeper("s")
    s.subscribe((b.topic("#"), 2))
    p = b.client("p")
    for n, qos in enumerate((2, 1, 2, 1)):
        p.deliver(b.topic("x"), b"%d" % n, qos)
    first = [s.message(ack=False) for _ in range(4)]
    assert [m.payload for m in first] == [b"0", b"1", b"2", b"3"]
    s.ack(PUBREC, first[0].packet_id)
    s.expect(PUBREL, first[0].packet_id)
    s.ack(PUBACK, first[1].packet_id)
    s.silence()  # nothing is sent again while the connection lasts
    s.hang_up()
    s = b.keeper("s")
    s.expect(PUBREL, first[0].packet_id)  # the PUBREL again, not the PUBLISH
    for m in first[2:]:
        found = s.message(ack=False)
        assert (found.packet_id, found.dup, found.payload, found.qos) == (m.packet_id, True, m.payload, m.qos), found
    s.ack(PUBCOMP, first[0].packet_id)
    s.ack(PUBREC, first[2].packet_id)
    s.expect(PUBREL, first[2].packet_id)
    s.ack(PUBCOMP, first[2].packet_id)
    s.ack(PUBACK, first[3].packet_id)
    s.ping()
    s.hang_up()
    s = b.keeper("s")
    s.silence()


@case("a refusal of the receiver ends the message", v5="4.4.0-2 4.3.3-4", seconds=2)
def receiver_refuses(b):
    s = b.keeper("s")
    s.subscribe((b.topic("#"), 2))
    p = b.client("p")
    for qos, kind in ((1, PUBACK), (2, PUBREC)):
        p.deliver(b.topic("x"), b"unwanted", qos)
        m = s.message(ack=False)
        s.ack(kind, m.packet_id, 0x83)
        s.ping()  # no PUBREL came first
    s.hang_up()
    s = b.keeper("s")
    s.silence()


@case("messages of one publisher keep their order", "4.6.0-2..3 4.6.0-5..6", "4.6.0-2..3 4.6.0-5..6")
def order(b):
    exact, wild = subscriber(b, name="exact", filters=("x",)), subscriber(b, name="wild", filters=("+",))
    p = b.client("p")
    for qos in (1, 2, 0):
        for n in range(50):
            p.publish_raw(b.topic("x"), b"%d" % n, qos, packet_id=n + 1)
        for n in range(50 if qos else 0):
            p.expect(PUBACK if qos == 1 else PUBREC, n + 1)
        for n in range(50 if qos == 2 else 0):
            p.ack(PUBREL, n + 1)
            p.expect(PUBCOMP, n + 1)
        for s in (exact, wild):
            found = [s.message(ack=qos < 2) for _ in range(50)]
            assert [m.payload for m in found] == [b"%d" % n for n in range(50)], qos
            if qos == 2:
                for m in found:
                    s.ack(PUBREC, m.packet_id)
                for m in found:
                    s.expect(PUBREL, m.packet_id)
                for m in found:
                    s.ack(PUBCOMP, m.packet_id)


@case("retained messages", "3.1.2-7 3.3.1-5..12", "3.3.1-5..9 3.8.4-4")
def retained(b):
    p = b.client("p")
    early = subscriber(b, name="early")

    def kept(topic="x"):
        late = b.client("late")
        late.subscribe((b.topic(topic), 2))
        try:
            m = late.message(timeout=0.4)
        except TimeoutError:
            return None
        assert m.retain, "retained messages say so to a new subscription"
        return m.payload, m.qos

    for n, qos in enumerate((0, 1, 2, 0)):
        p.deliver(b.topic("x"), b"%d" % n, qos, retain=True)
        m = early.message()
        assert (m.payload, m.retain) == (b"%d" % n, False), "an old subscription does not see the flag"
        assert kept() == (b"%d" % n, qos), "the last one counts, whatever its QoS"
    p.deliver(b.topic("x"), b"not kept", 1)
    p.deliver(b.topic("x"), b"", 1)
    assert [early.message().payload for _ in range(2)] == [b"not kept", b""]
    assert kept() == (b"3", 0)
    p.hang_up()
    p = b.client("p")
    assert kept() == (b"3", 0), "it does not belong to a session"
    p.deliver(b.topic("x"), b"", 1, retain=True)
    assert early.message().payload == b"", "it is delivered like any other"
    assert kept() is None


@case("retain handling", v5="3.3.1-9..11")
def retain_handling(b):
    p, s = b.client("p"), b.client("s")
    p.deliver(b.topic("x"), b"kept", 1, retain=True)
    for options, comes in ((0x00, True), (0x00, True), (0x10, False), (0x20, False)):
        s.subscribe((b.topic("x"), options))
        if comes:
            assert s.message().payload == b"kept"
        s.silence()
    s.unsubscribe(b.topic("x"))
    s.subscribe((b.topic("x"), 0x10))
    assert s.message().payload == b"kept", "the subscription is new"
    s.unsubscribe(b.topic("x"))
    s.subscribe((b.topic("x"), 0x20))
    s.silence()
    p.deliver(b.topic("x"), b"", 1, retain=True)


@case("retain as published", v5="3.3.1-12..13")
def retain_as_published(b):
    s, t = b.client("s"), b.client("t")
    s.subscribe((b.topic("+"), 0x08))
    t.subscribe((b.topic("+"), 0x00))
    p = b.client("p")
    for retain in (True, False):
        p.deliver(b.topic("x"), b"x", 1, retain=retain)
        assert s.message().retain == retain
        assert not t.message().retain
    p.deliver(b.topic("x"), b"", 1, retain=True)


@case("properties reach the subscriber as they are", v5="3.3.2-4 3.3.2-15..18 3.3.2-20")
def publish_properties(b):
    s, p = subscriber(b), b.client("p")
    pairs = [("z", "1"), ("a", "2"), ("z", "1"), ("\u00e9", "\ufeff")]
    props = [(1, 1), *((38, pair) for pair in pairs[:2]), (8, "answer/to"), (9, bytes(range(256))), (3, "text/x"),
             *((38, pair) for pair in pairs[2:])]  # fmt: skip
    p.deliver(b.topic("x"), b"x", 1, props=props)
    m = s.message()
    assert m.values(38) == pairs, m
    assert [m.value(k) for k in (1, 8, 9, 3)] == [1, "answer/to", bytes(range(256)), "text/x"], m
    p.deliver(b.topic("x"), b"\xff", 1, props=[(1, 0)])
    assert s.message().value(1) == 0


@case("properties that a PUBLISH cannot have", v5="1.5.7-1 3.3.2-8 3.3.2-13..14 3.3.2-19 3.3.4-6")
def bad_publish_properties(b):
    for props, codes in (
        ([(1, 2)], (0x81, 0x82)),
        ([(1, 0), (1, 0)], (0x81, 0x82)),
        ([(2, 1), (2, 1)], (0x81, 0x82)),
        ([(3, "a"), (3, "a")], (0x81, 0x82)),
        ([(8, "a/#")], (0x81, 0x82)),
        ([(8, "a/+")], (0x81, 0x82)),
        ([(8, b"\xff")], (0x81, 0x82)),
        ([(3, b"\xff")], (0x81,)),
        ([(3, "a\0")], (0x81,)),
        ([(38, (b"\xff", "v"))], (0x81,)),
        ([(38, ("k", b"\xff"))], (0x81,)),
        ([(38, ("k\0", "v"))], (0x81,)),
        ([(11, 1)], (0x81, 0x82)),
        ([(35, 0)], (0x94, 0x82)),
        ([(17, 1)], (0x81, 0x82)),
        ([(24, 1)], (0x81, 0x82)),
        ([(33, 1)], (0x81, 0x82)),
    ):
        c = b.client()
        c.publish_raw(b.topic("x"), props=props)
        c.refused(*codes)
    c = b.client()
    c.send(packet(0x30, text("t") + b"\x01\x7f" + b"x"))  # no such property
    c.refused(0x81, 0x82)


@case("messages expire while they wait, and the rest of their time goes with them",
      v5="3.3.2-5..6 4.3.3-7 4.3.3-13", seconds=4)  # fmt: skip
def expiry(b):
    s = b.keeper("s")
    s.subscribe((b.topic("#"), 2))
    p = b.client("p")
    p.deliver(b.topic("x"), b"in flight", 2, props=[(2, 1)])
    m = s.message(ack=False)
    assert m.value(2) in (1, 0), m
    s.hang_up()
    p.deliver(b.topic("x"), b"gone", 1, props=[(2, 1)])
    p.deliver(b.topic("x"), b"still good", 1, props=[(2, 60)])
    p.deliver(b.topic("kept"), b"kept", 1, retain=True, props=[(2, 1)])
    time.sleep(2.2)
    s = b.keeper("s")
    found = s.message(ack=False)
    assert (found.payload, found.dup, found.packet_id) == (b"in flight", True, m.packet_id), "it was on its way"
    s.ack(PUBREC, m.packet_id)
    found = s.message()
    assert found.payload == b"still good" and 55 <= found.value(2) <= 58, found
    s.expect(PUBREL, m.packet_id)
    s.ack(PUBCOMP, m.packet_id)
    s.silence()
    late = b.client("late")
    late.subscribe(b.topic("kept"))
    late.silence()


@case("topic aliases of the client", v5="3.3.2-7 3.3.2-9 3.3.2-12")
def aliases_in(b):
    s, p = subscriber(b), b.client("p")
    most = p.grant(34)
    for alias in (1, most):
        p.deliver(b.topic(f"a{alias}"), b"set", 1, props=[(35, alias)])
        p.deliver("", b"used", 1, props=[(35, alias)])
        for payload in (b"set", b"used"):
            m = s.message()
            assert (m.topic, m.payload) == (b.topic(f"a{alias}"), payload) and m.value(35) is None, m
    p.deliver(b.topic("other"), b"changed", 1, props=[(35, 1)])
    p.deliver("", b"used", 1, props=[(35, 1)])
    assert [s.message().topic for _ in range(2)] == [b.topic("other")] * 2
    for props, codes in (([(35, most + 1)], (0x94,)), ([(35, most)], (0x82, 0x94)), ([], (0x82, 0x90, 0x81))):
        c = b.client("wrong")  # a new connection knows no alias of an older one
        c.publish_raw("" if props != [(35, most + 1)] else b.topic("x"), props=props)
        c.refused(*codes)


@case("topic aliases of the server, as many as the client takes", v5="3.1.2-26..27 3.3.2-7 3.3.2-11")
def aliases_out(b):
    p = b.client("p")
    for most in (0, 2):
        s = subscriber(b, name=f"s{most}", props=[(34, most)] if most else ())
        known = {}
        for n in (0, 1, 2, 0, 1, 2):
            p.deliver(b.topic(f"x{n}"), b"%d" % n, 1)
            m = s.message()
            alias = m.value(35)
            assert alias is None or 0 < alias <= most, m
            if m.topic:
                known[alias] = m.topic
            assert (m.topic or known[alias]) == b.topic(f"x{n}"), m


@case("receive maximum of the client", v5="3.3.4-9..10 4.9.0-1..3", seconds=2)
def receive_maximum_out(b):
    s = subscriber(b, props=[(33, 3)])
    p = b.client("p")
    for n in range(6):
        p.deliver(b.topic("x"), b"%d" % n, 1 + n % 2)
    p.deliver(b.topic("x"), b"zero", 0)
    first = [s.message(ack=False) for _ in range(3)]
    s.ping()  # answered although the window is shut
    assert s.subscribe(b.topic("other")) == [0]
    s.silence()
    s.ack(PUBACK, first[0].packet_id)
    assert s.message(ack=False).payload == b"3"
    s.ack(PUBREC, first[1].packet_id)
    s.expect(PUBREL, first[1].packet_id)
    s.silence()  # a QoS 2 message counts until its PUBCOMP
    s.ack(PUBCOMP, first[1].packet_id)
    assert s.message(ack=False).payload == b"4"


@case("receive maximum of the server", v5="3.3.4-1 4.9.0-3 4.13.2-1", seconds=2)
def receive_maximum_in(b):
    c = b.client()
    most = c.grant(33)
    for n in range(most):
        c.publish_raw(b.topic("x"), b"", 2, packet_id=n + 1)
    for n in range(most):
        c.expect(PUBREC, n + 1, 0)
    c.ping()
    c.ack(PUBREL, 1)
    c.expect(PUBCOMP, 1, 0)
    c.publish_raw(b.topic("x"), b"", 2, packet_id=1)
    c.expect(PUBREC, 1, 0)
    c.publish_raw(b.topic("x"), b"", 1, packet_id=most + 1)
    c.refused(0x93)


@case("a message that is too large for one subscriber is dropped for it alone", v5="3.1.2-24..25")
def too_large(b):
    small, large = subscriber(b, name="small", props=[(39, 200)]), subscriber(b, name="large")
    p = b.client("p")
    for qos in (1, 2):
        p.deliver(b.topic("x"), b"x" * 300, qos)
        p.deliver(b.topic("x"), b"fits", qos)
        assert [len(large.message().payload) for _ in range(2)] == [300, 4]
        assert small.message().payload == b"fits"
    small.silence()


@case("a publish that is not allowed is answered, and goes nowhere", "3.3.5-2", "3.4.2-1 3.5.2-1")
def not_allowed(b):
    s = b.client("s")
    s.subscribe("$SYS/#")
    p = b.client("p")
    for qos in (1, 2):
        assert p.deliver("$SYS/x", b"x", qos) == (0x87 if b.v5 else 0)
    s.silence()


@case("the rest of an acknowledgement may be left out", v5="2.2.1-5 3.6.2-1 3.7.2-1")
def short_acks(b):
    s, p = subscriber(b), b.client("p")
    for code, props in ((None, None), (0, None), (0, ()), (0, [(38, ("k", "v"))]), (0, [(31, "why")])):
        p.deliver(b.topic("x"), b"x", 2)
        m = s.message(ack=False)
        s.ack(PUBREC, m.packet_id, code, props)
        s.expect(PUBREL, m.packet_id, 0)
        s.ack(PUBCOMP, m.packet_id, code, props)
        p.publish_raw(b.topic("y"), b"x", 2, packet_id=5)
        p.expect(PUBREC, 5, 0)
        p.ack(PUBREL, 5, code, props)
        p.expect(PUBCOMP, 5, 0)
        m = s.message(ack=False)
        s.send(packet(0x50, struct.pack(">H", m.packet_id)))
        s.expect(PUBREL, m.packet_id)
        s.send(packet(0x70, struct.pack(">HB", m.packet_id, 0) + properties(())))
        s.ping()

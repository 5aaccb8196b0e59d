"""Conformance: SUBSCRIBE, UNSUBSCRIBE, topic filters, shared subscriptions."""

from rawmqtt import PUBACK, PUBCOMP, PUBREC, packet, text
from rawpackets import PUBREL
from statements import case


def gets(b, p, s, topic):
    """Whether `s` gets a message on `topic`."""
    p.deliver(topic, topic.encode(), 1)
    try:
        m = s.message(timeout=0.4)
    except TimeoutError:
        return False
    assert m.topic == topic, m
    s.silence(0.05)
    return True


@case("SUBACK answers each filter in order, with the identifier of its SUBSCRIBE",
      "2.3.1-7 3.8.4-1..2 3.8.4-4..5 3.9.3-1..2", "2.2.1-6 3.8.4-1..2 3.8.4-5..7 3.9.3-1..2")  # fmt: skip
def suback(b):
    c = b.client()
    assert c.subscribe((b.topic("a"), 0), (b.topic("b"), 1), ("closed/x", 1), (b.topic("c"), 2)) == [0, 1, 0x80, 2]
    deep = "a/" * 64
    assert c.subscribe((deep, 0), (b.topic("d"), 1)) == [0x8F if b.v5 else 0x80, 1]
    packet_id = c.subscribe_raw((b.topic("e"), 0), packet_id=65535)
    assert c.codes(9, packet_id) == [0]
    p = b.client("p")
    for topic, qos in (("a", 0), ("b", 1), ("c", 2), ("d", 1)):
        p.deliver(b.topic(topic), b"x", 2)
        m = c.message()
        assert (m.topic, m.qos) == (b.topic(topic), qos), m
    p.deliver("closed/x", b"x", 1)
    c.silence()


@case("what a SUBSCRIBE must not be", "1.5.3-1..2 2.3.1-1 3.8.3-1 3.8.3-3..4 4.7.1-2..3 4.7.3-1..2",
      "1.5.4-1..2 3.8.3-1..2 3.8.3-4..5 4.7.1-1..2 4.7.3-1..2 4.8.2-1..2 4.13.1-1")  # fmt: skip
def malformed_subscribe(b):
    props = b"\0" if b.v5 else b""
    me = b"\0\x01" + props
    bad = [
        (me, (0x81, 0x82)),  # no filter
        (b"\0\0" + props + text("t") + b"\0", (0x81, 0x82)),  # identifier 0
        (me + text("t"), (0x81,)),  # no options
        (me + text(b"\xff") + b"\0", (0x81, 0x8F)),
        (me + text("a\0b") + b"\0", (0x81, 0x8F)),
        (me + text("") + b"\0", (0x81, 0x82, 0x8F)),
        (me + text("t") + b"\x03", (0x81, 0x82)),  # QoS 3
        (me + text("t") + b"\x40", (0x81,)),  # reserved bits
        (me + text("t") + b"\x80", (0x81,)),
        (me + text("t") + b"\0" + text("a/#/b") + b"\0", (0x81, 0x8F)),
    ]
    bad += [(me + text(f) + b"\0", (0x81, 0x8F)) for f in ("a#", "#/a", "a/b#", "##", "a+", "+a", "a/+b/c", "++")]
    if b.v5:
        bad += [(me + text(f) + b"\0", (0x82, 0x81, 0x8F)) for f in ("$share", "$share/", "$share/g", "$share//t",
                                                                     "$share/g/", "$share/+/t", "$share/g#/t")]  # fmt: skip
        bad.append((me + text("$share/g/t") + b"\x04", (0x82,)))  # no local with a group
        bad.append((me + text("t") + b"\x30", (0x81, 0x82)))  # retain handling 3
        bad.append((b"\0\x01\x02\x0b\0" + text("t") + b"\0", (0x82,)))  # subscription identifier 0
        bad.append((b"\0\x01\x04\x0b\x01\x0b\x02" + text("t") + b"\0", (0x82,)))  # two of them
    else:
        bad += [(me + text("t") + bytes([bits]), ()) for bits in (4, 8, 16, 32)]
    for body, codes in bad:
        c = b.client()
        c.send(packet(0x82, body))
        c.refused(*codes)


@case("what an UNSUBSCRIBE must not be", "2.3.1-1 3.10.3-1..2", "3.10.3-1..2 4.13.1-1")
def malformed_unsubscribe(b):
    props = b"\0" if b.v5 else b""
    for body in (b"\0\x01" + props, b"\0\0" + props + text("t"), b"\0\x01" + props + text(b"\xff"),
                 b"\0\x01" + props + text("a\0"), b"\0\x01" + props + text("")):  # fmt: skip
        c = b.client()
        c.send(packet(0xA2, body))
        c.refused(0x81, 0x82, 0x8F)


@case("the filter matches the topic of whatever comes", "3.3.2-3 4.7.1-2..3", "3.3.2-3 4.7.1-1..2", seconds=12)
def wildcards(b):
    s, p = b.client("s"), b.client("p")
    for f, yes, no in (
        ("a/#", ("a", "a/b", "a/b/c"), ("ab", "b")),
        ("a/+", ("a/b", "a/"), ("a", "a/b/c")),
        ("+/+", ("a/b", "/b"), ("a", "a/b/c")),
        ("/+", ("/b",), ("a/b", "b")),
        ("a/+/c", ("a/b/c", "a//c"), ("a/c",)),
        ("+/#", ("a", "a/b", "/x"), ()),
        ("a//b", ("a//b",), ("a/b",)),
    ):
        assert s.subscribe((b.topic(f), 1)) == [1]
        for topic in yes:
            assert gets(b, p, s, b.topic(topic)), (f, topic)
        for topic in no:
            assert not gets(b, p, s, b.topic(topic)), (f, topic)
        s.unsubscribe(b.topic(f))


@case("a wildcard at the beginning does not match a topic that begins with $", "4.7.2-1", "4.7.2-1")
def dollar(b):
    s, p = b.client("s"), b.client("p")
    topic = f"${b.topic('x')}"
    s.subscribe("#", "+/" + topic.partition("/")[2])
    p.deliver(topic, b"hidden", 1)
    p.deliver(b.topic("end"), b"seen", 1)
    while (m := s.message()).topic != b.topic("end"):
        assert not m.topic.startswith("$"), m
    s = b.client("s")
    s.subscribe((topic.rpartition("/")[0] + "/#", 1))
    assert gets(b, p, s, topic)


@case("names are compared byte by byte, up to their full length", "4.7.3-3..4", "4.7.3-3..4")
def names(b):
    s, p = b.client("s"), b.client("p")
    s.subscribe(b.topic("Case"), b.topic("a b"))
    assert not gets(b, p, s, b.topic("case"))
    assert gets(b, p, s, b.topic("Case"))
    assert gets(b, p, s, b.topic("a b"))
    long = b.topic("x" * (65535 - len(b.topic(""))))
    assert s.subscribe(long) == [0]
    assert gets(b, p, s, long)


@case("a filter that is subscribed to again replaces its subscription, and nothing is lost",
      "3.8.4-3", "3.8.4-3..4")  # fmt: skip
def resubscribe(b):
    s, p = b.client("s"), b.client("p")
    p.deliver(b.topic("x"), b"kept", 1, retain=True)
    for qos in (0, 2, 1):
        assert s.subscribe((b.topic("x"), qos)) == [qos]
        assert s.message().payload == b"kept", "sent again"
        p.deliver(b.topic("x"), b"live", 2)
        m = s.message()
        assert (m.payload, m.qos) == (b"live", qos)
        s.silence(0.1)
    # While messages flow.
    for n in range(100):
        p.publish_raw(b.topic("x"), b"%d" % n, 1, packet_id=n + 1)
        if n % 10 == 0:
            s.subscribe_raw((b.topic("x"), 0x21 if b.v5 else 1))
    live = []
    while len(live) < 100:
        kind, flags, body = s.read()
        if kind == 3:
            n = int.from_bytes(body[:2], "big")
            at = 2 + n + (2 if flags & 6 else 0) + (1 if b.v5 else 0)
            if flags & 6:
                s.ack(PUBACK, int.from_bytes(body[2 + n:4 + n], "big"))
            if body[at:] != b"kept":
                live.append(body[at:])
    assert live == [b"%d" % n for n in range(100)], live
    b.client("clear").deliver(b.topic("x"), b"", 1, retain=True)


@case("the lower of both qualities of service", "3.8.4-6", "3.8.4-8")
def lower_qos(b):
    s, p = b.client("s"), b.client("p")
    for granted in (0, 1, 2):
        assert s.subscribe((b.topic("x"), granted)) == [granted]
        for sent in (0, 1, 2):
            p.deliver(b.topic("x"), b"x", sent)
            assert s.message().qos == min(granted, sent)


@case("overlapping subscriptions: the highest QoS of those that match, and all their identifiers",
      "3.3.5-1", "3.3.4-2..4")  # fmt: skip
def overlapping(b):
    s, p = b.client("s"), b.client("p")
    s.subscribe((b.topic("x"), 0), props=[(11, 7)])
    s.subscribe((b.topic("+"), 2), props=[(11, 268435455)])
    s.subscribe((b.topic("#"), 1))
    p.deliver(b.topic("x"), b"x", 2)
    found = [s.message()]
    try:
        while True:
            found.append(s.message(timeout=0.3))
    except TimeoutError:
        pass
    assert max(m.qos for m in found) == 2, found
    if b.v5:
        assert sorted(i for m in found for i in m.values(11)) == [7, 268435455], found
        s.subscribe((b.topic("x"), 0))
        s.unsubscribe(b.topic("+"), b.topic("#"))
        p.deliver(b.topic("x"), b"x", 2)
        assert s.message().values(11) == [], "replaced by a subscription without one"
        p.deliver(b.topic("kept"), b"kept", 1, retain=True)
        s.subscribe((b.topic("kept"), 1), props=[(11, 3)])
        m = s.message()
        assert m.retain and m.values(11) == [3], "a retained message says which subscription it is for"
        p.deliver(b.topic("kept"), b"", 1, retain=True)


@case("no local", v5="3.8.3-3")
def no_local(b):
    s, p = b.client("s"), b.client("p")
    for f in ("x", "+"):
        s.subscribe((b.topic(f), 0x04 | 1))
        s.deliver(b.topic("x"), b"mine", 1)
        s.silence()
        p.deliver(b.topic("x"), b"not mine", 1)
        assert s.message().payload == b"not mine"
        s.unsubscribe(b.topic(f))


@case("UNSUBACK answers each filter in order; what was unsubscribed does not come",
      "2.3.1-7 3.10.4-1..2 3.10.4-4..6", "2.2.1-6 3.10.4-1..2 3.10.4-4..6 3.11.3-1..2")  # fmt: skip
def unsubscribe(b):
    s, p = b.client("s"), b.client("p")
    s.subscribe((b.topic("a"), 1), (b.topic("+"), 1), (b.topic("c"), 1))
    codes = s.unsubscribe(b.topic("a"), b.topic("never"), b.topic("#"), b.topic("+"))
    assert codes == ([0, 0x11, 0x11, 0] if b.v5 else []), codes
    assert not gets(b, p, s, b.topic("a"))
    assert gets(b, p, s, b.topic("c")), "the others stay"
    assert s.unsubscribe(b.topic("a")) == ([0x11] if b.v5 else [])


@case("what is on its way when a filter is unsubscribed is delivered to the end", "3.10.4-3", "3.10.4-3")
def unsubscribe_in_flight(b):
    s, p = b.keeper("s"), b.client("p")
    s.subscribe((b.topic("x"), 2))
    p.deliver(b.topic("x"), b"one", 1)
    p.deliver(b.topic("x"), b"two", 2)
    one, two = s.message(ack=False), s.message(ack=False)
    s.unsubscribe(b.topic("x"))
    s.hang_up()
    s = b.keeper("s")
    found = [s.message(ack=False) for _ in range(2)]
    assert [(m.packet_id, m.payload) for m in found] == [(m.packet_id, m.payload) for m in (one, two)]
    s.ack(PUBACK, one.packet_id)
    s.ack(PUBREC, two.packet_id)
    s.expect(PUBREL, two.packet_id)
    s.ack(PUBCOMP, two.packet_id)
    s.silence()


@case("shared subscriptions: one member gets each message, with the QoS of its own subscription",
      v5="4.8.2-1 4.8.2-3")  # fmt: skip
def shared(b):
    members = [b.client(f"m{n}") for n in range(3)]
    for n, m in enumerate(members):
        assert m.subscribe((f"$share/g/{b.topic('+')}", n)) == [n]
    alone = b.client("alone")
    alone.subscribe((b.topic("x"), 2))
    p = b.client("p")
    for n in range(30):
        p.deliver(b.topic("x"), b"%d" % n, 2)
        assert alone.message().payload == b"%d" % n
    found = []
    for n, m in enumerate(members):
        try:
            while True:
                got = m.message(timeout=0.3)
                assert got.qos == n, got
                found.append(int(got.payload))
        except TimeoutError:
            pass
    assert sorted(found) == list(range(30)), found


@case("shared subscriptions: no member gets what another had begun to receive", v5="4.8.2-4..6", seconds=5)
def shared_in_flight(b):
    group = f"$share/g/{b.topic('x')}"
    one = b.keeper("one", seconds=60)
    one.subscribe((group, 2))
    p = b.client("p")
    p.deliver(b.topic("x"), b"for one", 2)
    m = one.message(ack=False)
    other = b.client("other")
    other.subscribe((group, 2))
    one.hang_up()
    other.silence(0.5)
    one = b.keeper("one", seconds=60)
    again = one.message()
    assert (again.payload, again.packet_id, again.dup) == (b"for one", m.packet_id, True), "completed by the same"
    one.unsubscribe(group)
    # Refused: dropped.
    three = b.client("three")
    three.subscribe((group, 2))
    other.unsubscribe(group)
    for qos, kind in ((1, PUBACK), (2, PUBREC)):
        p.deliver(b.topic("x"), b"refused", qos)
        m = three.message(ack=False)
        other.subscribe((group, 2))
        three.ack(kind, m.packet_id, 0x83)
        three.silence(0.2)
        other.silence(0.2)
        other.unsubscribe(group)
    # The session ends with a QoS 2 message on its way: nobody else gets it.
    p.deliver(b.topic("x"), b"ends", 2)
    three.message(ack=False)
    other.subscribe((group, 2))
    three.hang_up()
    other.silence(0.5)

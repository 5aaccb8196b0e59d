"""The numbers of the normative statements of MQTT 3.1.1 and 5.0, and what tests them.

Only numbers stand here: the words are those of the standards (OASIS, mqtt-v3.1.1-os and mqtt-v5.0-os).
"""

from dataclasses import dataclass, field

from rawpackets import Client


def every(text):
    """Expands `3.1.2-1..3` to three numbers."""
    out = []
    for word in text.split():
        section, _, rest = word.rpartition("-")
        first, _, last = rest.partition("..")
        out += [f"{section}-{n}" for n in range(int(first), int(last or first) + 1)]
    return out


V3 = every(
    """
    1.5.3-1..3 2.2.2-1..2 2.3.1-1..7 3.1.0-1..2 3.1.2-1..24 3.1.3-1..11 3.1.4-1..5 3.2.0-1 3.2.2-1..6
    3.3.1-1..12 3.3.2-1..3 3.3.4-1 3.3.5-1..2 3.6.1-1 3.8.1-1 3.8.3-1..4 3.8.4-1..6 3.9.3-1..2 3.10.1-1
    3.10.3-1..2 3.10.4-1..6 3.12.4-1 3.14.1-1 3.14.4-1..3 4.1.0-1..2 4.2.0-1 4.3.1-1 4.3.2-1..2
    4.3.3-1..2 4.4.0-1 4.5.0-1..2 4.6.0-1..6 4.7.1-1..3 4.7.2-1 4.7.3-1..4 4.8.0-1..2 6.0.0-1..4
    """
)

V5 = every(
    """
    1.5.4-1..3 1.5.5-1 1.5.7-1 2.1.3-1 2.2.1-2..6 2.2.2-1 3.1.0-1..2 3.1.2-1..30 3.1.3-1..12 3.1.4-1..6
    3.2.0-1..2 3.2.2-1..22 3.3.1-1..13 3.3.2-1..20 3.3.4-1..10 3.4.2-1..3 3.5.2-1..3 3.6.1-1 3.6.2-1..3
    3.7.2-1..3 3.8.1-1 3.8.3-1..5 3.8.4-1..8 3.9.2-1..2 3.9.3-1..2 3.10.1-1 3.10.3-1..2 3.10.4-1..6
    3.11.2-1..2 3.11.3-1..2 3.12.4-1 3.14.0-1 3.14.1-1 3.14.2-1..4 3.14.4-1..3 3.15.1-1 3.15.2-1..3
    4.1.0-1..2 4.2-1 4.3.1-1 4.3.2-1..5 4.3.3-1..13 4.4.0-1..2 4.5.0-1..2 4.6.0-1..6 4.7.0-1 4.7.1-1..2
    4.7.2-1 4.7.3-1..4 4.8.2-1..6 4.9.0-1..3 4.12.0-1..7 4.12.1-1..2 4.13.1-1 4.13.2-1 6.0.0-1..4
    """
)

CASES = []


@dataclass
class Case:
    """A test and the statements that it stands for, by version (4 is 3.1.1)."""

    name: str
    words: str
    function: object
    seconds: float
    statements: dict = field(default_factory=dict)


def case(words, v3=None, v5=None, seconds=1.0):
    """Adds a case; it is run once per version that it names statements of."""

    def add(function):
        of = {version: every(ids) for version, ids in ((4, v3), (5, v5)) if ids is not None}
        CASES.append(Case(function.__name__, words, function, seconds, of))
        return function

    return add


class Bench:
    """What a case works with: clients and topics that no other case has."""

    def __init__(self, port, version, name):
        self.port, self.version, self.name = port, version, f"{name}-{version}"
        self.v5 = version == 5

    def id(self, name):
        return f"{self.name}-{name}"

    def topic(self, rest):
        return f"t/{self.name}/{rest}"

    def client(self, name="c", version=None, **more):
        """A connected client; clean, unless told otherwise."""
        return Client(self.port, version or self.version, self.id(name), **more)

    def keeper(self, name="keeper", seconds=60, clean=False, props=(), **more):
        """A client whose session outlives its connection."""
        props = [*props, (17, seconds)] if self.v5 else props
        return self.client(name, clean=clean, props=props, **more)

    def open(self, version=None):
        """A connection without CONNECT."""
        return Client(self.port, version or self.version, connect=False)


def _set(*groups):
    return {s: why for why, text in groups for s in every(text)}


_CLIENT = "binds clients, or the receiving side of a client"
_WEBSOCKET = "there is no WebSocket listener"
_AUTH = "there is no extended authentication; a client that asks for it is refused (4.12.0-1)"

# Statements that bind only clients.
CLIENTS = {
    4: _set(
        (_CLIENT, "2.3.1-2..3 3.1.2-23 3.14.4-1..2 4.1.0-1 4.5.0-2 4.6.0-1 4.6.0-4"),
    ),
    5: _set(
        (_CLIENT, "2.2.1-3 3.1.2-20..21 3.1.2-30 3.2.2-4..5 3.2.2-11 3.2.2-14..15 3.2.2-17..18 3.2.2-21 3.3.2-10 "
                  "3.3.4-7..8 4.5.0-2 4.6.0-1 4.6.0-4"),
    ),
}  # fmt: skip

# Statements about what is not here.
ABSENT = {
    4: _set(
        (_WEBSOCKET, "6.0.0-1..4"),
        ("wildcards are served", "3.8.3-2"),
        ("there is no way to be out of memory for one connection only; a server that cannot go on ends as a whole",
         "4.8.0-2"),
    ),
    5: _set(
        (_WEBSOCKET, "6.0.0-1..4"),
        (_AUTH, "3.15.2-1..3 4.12.0-2..5 4.12.0-7 4.12.1-1..2"),
        ("QoS 2 and retained messages are served", "3.2.2-9..10 3.2.2-12..13"),
        ("the server writes no user properties of its own",
         "3.2.2-20 3.4.2-3 3.5.2-3 3.6.2-3 3.7.2-3 3.9.2-2 3.11.2-2 3.14.2-4"),
        ("the server writes no reason string there", "3.6.2-2 3.7.2-2 3.9.2-1 3.11.2-1"),
        ("a session has one copy of a message, with all identifiers (3.3.4-4)", "3.3.4-5"),
    ),
}  # fmt: skip

"""The caller's packets, as the network brings them -> one piece of 20 ms at every tick, with as little delay as it
allows (pure).

Time is counted in samples of Opus's RTP clock (48 kHz) and in ticks; there is no clock here. Nothing is waited for in
advance: the packet that is due is played at the tick after its arrival. Of what isn't there one of two things is true:

    a later packet is there    it is lost: its time is concealed, and passes; the delay stays
    none is                    it is late, or nobody speaks: concealed too, but the stream's position waits, so that
                               the delay grows by a tick, and the packet is played when it comes

Delay that has not been needed for WINDOW_TICKS is given back by leaving out a quiet piece; above MOST_WAITING the
oldest packets are left out, however loud. A gap in the timestamps, in which the sender was silent, is taken off the
ticks that were waited.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

TICK = 960  # samples of the RTP clock in 20 ms
WINDOW_TICKS = 500  # 10 s without need of a piece that waits, after which it may go
MOST_WAITING = 10 * TICK  # samples in the buffer: 200 ms
KEPT_OF_TOO_MANY = 2 * TICK
LONGEST_GAP = 50 * TICK  # a jump of timestamps above it is a new beginning
MOST_PACKETS = 64
_WRAP = 1 << 32
_DURATIONS_SILK = (480, 960, 1920, 2880)
_DURATIONS_CELT = (120, 240, 480, 960)
LONGEST_PACKET = 5760  # 120 ms


def opus_samples(payload: bytes) -> int:
    """How long an Opus packet sounds, in samples at 48 kHz (RFC 6716, section 3.1); 0 for what is no packet."""
    if not payload:
        return 0
    configuration, code = payload[0] >> 3, payload[0] & 3
    if configuration < 12:
        frame = _DURATIONS_SILK[configuration & 3]
    elif configuration < 16:
        frame = (480, 960)[configuration & 1]
    else:
        frame = _DURATIONS_CELT[configuration & 3]
    frames = (1, 2, 2, payload[1] & 63 if len(payload) > 1 else 0)[code]
    samples = frame * frames
    return samples if samples <= LONGEST_PACKET else 0


@dataclass(frozen=True)
class Packet:
    """One that is due, to be decoded."""

    payload: bytes
    samples: int


@dataclass(frozen=True)
class Missing:
    """This much of the stream never came: to be concealed."""

    samples: int


@dataclass
class JitterCounts:
    received: int = 0
    lost: int = 0  # ticks concealed because a later packet was there
    late: int = 0  # packets that came after their time had been concealed
    waited: int = 0  # ticks concealed because nothing was there
    shed: int = 0  # packets left out to give delay back


class JitterBuffer:
    """Packets in by `push`; `next` gives what to decode or conceal next, until it gives None: nothing is there."""

    def __init__(self, counts: JitterCounts | None = None) -> None:
        """`counts` go on counting, where this buffer takes another one's place."""
        self.counts = counts or JitterCounts()
        self._packets: deque[tuple[int, Packet]] = deque()  # rising timestamps, unwrapped
        self._due: int | None = None  # the timestamp that is played next
        self._last = 0  # the newest timestamp, unwrapped
        self._waiting = 0  # samples of time that passed while nothing was there
        self._ticks = 0
        self._least: int | None = None  # samples left after a tick, the least in this window
        self._to_shed = 0

    @property
    def queued(self) -> int:
        """Samples that wait."""
        return sum(packet.samples for _, packet in self._packets)

    @property
    def may_shed(self) -> bool:
        """A packet waits that nothing needs: it may be left out where it is quiet."""
        return self._to_shed > 0 and len(self._packets) > 0

    def push(self, timestamp: int, payload: bytes) -> None:
        """Take a packet; `timestamp` as in its RTP header."""
        samples = opus_samples(payload)
        if not samples:
            return
        self.counts.received += 1
        at = self._unwrapped(timestamp)
        if self._due is not None and at < self._due:
            self.counts.late += 1
            return
        self._insert(at, Packet(payload, samples))
        if self.queued > MOST_WAITING or len(self._packets) > MOST_PACKETS:
            self._drop_many()

    def next(self) -> Packet | Missing | None:
        """What comes next in the stream; None where nothing is there, which counts as a tick waited."""
        if not self._packets:
            if self._due is not None:
                self._waiting += TICK
                self.counts.waited += 1
                self._least, self._ticks, self._to_shed = None, 0, 0
            return None
        at, packet = self._packets[0]
        if self._due is None:
            self._due = at
        gap = at - self._due
        if gap > 0:
            passed = min(gap, self._waiting)
            self._due += passed
            gap -= passed
        self._waiting = 0
        if gap > 0:
            missing = min(gap, TICK)
            self._due += missing
            self.counts.lost += 1
            return Missing(missing)
        self._packets.popleft()
        self._due = at + packet.samples
        return packet

    def ticked(self) -> None:
        """A tick has been filled: notes what was left, to know what isn't needed."""
        if not self._packets:
            self._least = 0
        else:
            self._least = self.queued if self._least is None else min(self._least, self.queued)
        self._ticks += 1
        if self._ticks >= WINDOW_TICKS:
            self._to_shed = (self._least or 0) // TICK
            self._least, self._ticks = None, 0

    def shed(self) -> None:
        """The piece that was due has been left out."""
        self._to_shed = max(0, self._to_shed - 1)
        self.counts.shed += 1

    def _unwrapped(self, timestamp: int) -> int:
        """The timestamp nearest to the last one; a jump too far to be a gap begins anew."""
        if self._due is None and not self._packets:
            self._last = timestamp
            return timestamp
        at = self._last + (timestamp - self._last + _WRAP // 2) % _WRAP - _WRAP // 2
        due = self._due if self._due is not None else self._packets[0][0]
        if not -LONGEST_GAP <= at - due <= LONGEST_GAP + self._waiting:
            self._packets.clear()
            self._due = at
            self._waiting = 0
        self._last = max(at, self._last) if abs(at - self._last) <= LONGEST_GAP else at
        return at

    def _insert(self, at: int, packet: Packet) -> None:
        place = len(self._packets)
        while place and self._packets[place - 1][0] > at:
            place -= 1
        if place and self._packets[place - 1][0] == at:
            return  # sent twice
        self._packets.insert(place, (at, packet))

    def _drop_many(self) -> None:
        """They came all at once, after the network was away: the newest are kept."""
        while len(self._packets) > 1 and self.queued > KEPT_OF_TOO_MANY:
            self._packets.popleft()
            self.counts.shed += 1
        self._due = self._packets[0][0]
        self._waiting = 0

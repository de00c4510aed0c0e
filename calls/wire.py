"""What a bridge and a worker say to each other on `/api/call`: messages <-> bytes, no I/O.

A binary WebSocket message's first byte is its kind; numbers are little endian, JSON is UTF-8:

    kind        direction         payload
    0 open      bridge -> worker  JSON: version, call, lease token, settings, who the agent is
    0 ready     worker -> bridge  JSON: slot, model, frame, codebook counts, largest delay, us to the boundary
    1 audio     both              u32 k, s16le[frame]
    2 text      worker -> bridge  JSON: pieces taken and wanted, or a finished word with its first and last k
    3 control   bridge -> worker  JSON: id, action, text, mute, sampling
    3 outcome   worker -> bridge  JSON: id, outcome, first_k, k, why
    5 error     both              JSON: code, text
    6 ping      both              u64, sent back as it came
    10 step     worker -> bridge  a row of the token log, see StepLayout
    11 history  bridge -> worker  u32 count, the steps, then JSON: control state
    12 close    both              u8 reason
    13 leave    worker -> bridge  u8 reason: the call shall go on at another worker, this one has it until then
    14 follow   bridge -> worker  a step of the worker that has the call, then its frame: s16le[frame]

Kinds 0 and 3 mean different things in the two directions, so there are two decoders. Unknown kinds decode to
None, and the receiver ignores them; anything else that doesn't fit raises WireError.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

VERSION = 2
MAX_JSON_BYTES = 65536
MAX_HISTORY_STEPS = 65536
MAX_BYTES = 16 * 2**20  # of any message; the WebSockets of both sides are opened with it
MAX_LINE = 2000  # characters of a line to say
MAX_ROLE = 4000  # of an agent's role
TEXT_MODE, FORCED, MUTED = 0x0F, 0x10, 0x20  # in a step's mode: what was barred, a forced token, silence's codes
EPAD, PAD = 0, 3  # in a step's text: the next frame begins a word; none begins
NO_CODE = 65535  # in a step's u16 codes: there was none
PATH = "/api/call"
REPRIMED = "reprimed"  # outcome: the agent goes on from its role and the caller's last seconds, from frame k on


class WireError(ValueError):
    """The other side sent what the protocol doesn't allow; the text says what."""


class Kind(IntEnum):
    OPEN = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    ERROR = 5
    PING = 6
    STEP = 10
    HISTORY = 11
    CLOSE = 12
    LEAVE = 13
    FOLLOW = 14


class CloseReason(IntEnum):
    ENDED = 0  # the call is over
    DRAINING = 1  # this side shuts down
    LEASE_LOST = 2
    PROTOCOL = 3
    FAILED = 4
    OVERLOADED = 5


Count = Annotated[int, Field(ge=0, le=256)]
FrameIndex = Annotated[int, Field(ge=0, lt=2**32)]
ShortText = Annotated[str, Field(max_length=256)]


@dataclass(frozen=True)
class SamplingSettings:
    """How a call's tokens are drawn; None leaves the model's own setting."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    text_temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    text_top_k: Annotated[int, Field(ge=0, le=2**20)] | None = None
    audio_temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    audio_top_k: Annotated[int, Field(ge=0, le=2**20)] | None = None
    pad_bias: Annotated[float, Field(ge=-100, le=100)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None


@dataclass(frozen=True)
class Persona:
    """Who the agent is: its role, and the name of its voice; for models that were taught such."""

    role: Annotated[str, Field(max_length=MAX_ROLE)] = ""
    voice: Annotated[str, Field(pattern=r"^([\w-][\w.-]{0,63})?$")] = ""

    def __bool__(self) -> bool:
        return bool(self.role or self.voice)


@dataclass(frozen=True)
class Open:
    call: ShortText
    lease: Annotated[str, Field(max_length=4096)]
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    persona: Persona = field(default_factory=Persona)
    resume: bool = False  # a history follows
    version: int = VERSION


@dataclass(frozen=True)
class Ready:
    slot: Count
    model: ShortText
    sample_rate: int
    frame_samples: int
    generated_codebooks: Count
    agent_codebooks: Count
    caller_codebooks: Count
    pause_heads: Count
    largest_delay: Count
    us_to_boundary: Annotated[int, Field(ge=0, le=10**6)]
    version: int = VERSION

    @property
    def layout(self) -> StepLayout:
        return StepLayout(self.generated_codebooks, self.caller_codebooks, self.pause_heads)


@dataclass(frozen=True)
class Audio:
    k: int
    pcm: bytes  # s16le, one frame


@dataclass(frozen=True)
class Text:
    """One token's piece and the one that the model would have taken (`sampled`), either of which may be none, before
    its step; or a finished word, after it."""

    k: FrameIndex
    speaker: Literal["agent", "caller"]
    piece: ShortText = ""
    sampled: ShortText = ""
    word: ShortText | None = None
    first_k: FrameIndex | None = None
    last_k: FrameIndex | None = None


@dataclass(frozen=True)
class Control:
    """What the agent shall do from its next frame on."""

    id: ShortText
    action: Literal["speak", "hold", "say", "whisper", "release", "set", "reprime"]
    text: Annotated[str, Field(max_length=MAX_LINE)] = ""  # of say and whisper
    mute: bool = False  # of hold
    sampling: SamplingSettings | None = None  # of set


@dataclass(frozen=True)
class Outcome:
    """What became of a control, and in which frames."""

    id: ShortText
    outcome: ShortText
    first_k: FrameIndex
    k: FrameIndex
    why: ShortText = ""


@dataclass(frozen=True)
class Error:
    code: ShortText
    text: Annotated[str, Field(max_length=1024)]


@dataclass(frozen=True)
class Ping:
    nonce: int


@dataclass(frozen=True)
class Step:
    """A row of the token log: all that frame k did. Codes are in step order, None where there was none."""

    k: int
    text: int
    sampled_text: int
    mode: int  # the text mode, FORCED, MUTED
    agent_codes: tuple[int | None, ...]  # [generated codebooks]
    caller_codes: tuple[int | None, ...]  # [caller codebooks]
    caller_text: int
    pauses: tuple[float, ...]  # [pause heads]
    text_entropy: float
    audio_entropy: float
    codebook_spread: float
    us_waited: int
    us_in_step: int


@dataclass(frozen=True)
class History:
    steps: tuple[Step, ...]
    control_state: dict[str, Any]


@dataclass(frozen=True)
class Close:
    reason: CloseReason


@dataclass(frozen=True)
class Leave:
    """The worker wants to be rid of the call, without a pause where another one can have it."""

    reason: CloseReason


@dataclass(frozen=True)
class Follow:
    """What the worker that has the call did in a frame: the one that shall have it next does the same."""

    step: Step
    pcm: bytes  # s16le, the caller's frame


@dataclass(frozen=True)
class StepLayout:
    """How long a step is on the wire; follows from the counts in Ready."""

    generated_codebooks: int
    caller_codebooks: int
    pause_heads: int

    @property
    def row(self) -> struct.Struct:
        codes = self.generated_codebooks + self.caller_codebooks
        return struct.Struct(f"<IiiB{codes}Hi{self.pause_heads + 3}fII")

    def pack(self, step: Step) -> bytes:
        codes = (NO_CODE if code is None else code for code in step.agent_codes + step.caller_codes)
        return self.row.pack(step.k, step.text, step.sampled_text, step.mode, *codes, step.caller_text, *step.pauses,
                             step.text_entropy, step.audio_entropy, step.codebook_spread, step.us_waited,
                             step.us_in_step)

    def unpack(self, data: bytes) -> Step:
        if len(data) != self.row.size:
            raise WireError(f"a step has {self.row.size} bytes here, not {len(data)}")
        k, text, sampled, mode, *rest = self.row.unpack(data)
        agent_end = self.generated_codebooks
        caller_end = agent_end + self.caller_codebooks
        codes = tuple(None if code == NO_CODE else code for code in rest[:caller_end])
        pauses_end = caller_end + 1 + self.pause_heads
        return Step(k, text, sampled, mode, codes[:agent_end], codes[agent_end:], rest[caller_end],
                    tuple(rest[caller_end + 1:pauses_end]), *rest[pauses_end:])


FromBridge = Open | Audio | Control | Error | Ping | History | Close | Follow
FromWorker = Ready | Audio | Text | Outcome | Error | Ping | Step | Close | Leave

_JSON_KINDS: dict[type, Kind] = {Open: Kind.OPEN, Ready: Kind.OPEN, Text: Kind.TEXT, Control: Kind.CONTROL,
                                 Outcome: Kind.CONTROL, Error: Kind.ERROR}
_ADAPTERS: dict[type, TypeAdapter[Any]] = {message: TypeAdapter(message) for message in _JSON_KINDS}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

Message = TypeVar("Message")


def encode(message: FromBridge | FromWorker, layout: StepLayout | None = None) -> bytes:
    """The bytes of `message`; steps and histories need the call's layout."""
    match message:
        case Audio(k, pcm):
            return bytes((Kind.AUDIO,)) + _U32.pack(k) + pcm
        case Ping(nonce):
            return bytes((Kind.PING,)) + _U64.pack(nonce)
        case Close(reason):
            return bytes((Kind.CLOSE, reason))
        case Leave(reason):
            return bytes((Kind.LEAVE, reason))
        case Follow(step, pcm):
            return bytes((Kind.FOLLOW,)) + _known(layout).pack(step) + pcm
        case Step():
            return bytes((Kind.STEP,)) + _known(layout).pack(message)
        case History(steps, control_state):
            rows = b"".join(map(_known(layout).pack, steps))
            return bytes((Kind.HISTORY,)) + _U32.pack(len(steps)) + rows + json.dumps(control_state).encode()
        case _:
            return bytes((_JSON_KINDS[type(message)],)) + json.dumps(asdict(message)).encode()


def decode_from_bridge(data: bytes, layout: StepLayout | None = None) -> FromBridge | None:
    """The message in `data` that a bridge sent, None for an unknown kind; raises WireError."""
    kind, payload = _kind(data)
    match kind:
        case Kind.OPEN:
            return _json(Open, payload)
        case Kind.CONTROL:
            return _json(Control, payload)
        case Kind.HISTORY:
            return _history(payload, _known(layout))
        case Kind.FOLLOW:
            size = _known(layout).row.size
            if len(payload) % 2 != size % 2:
                raise WireError(f"a step and a frame of {len(payload)} bytes have no whole samples")
            return Follow(_known(layout).unpack(payload[:size]), payload[size:])
        case _:
            return _either_way(kind, payload)


def decode_from_worker(data: bytes, layout: StepLayout | None = None) -> FromWorker | None:
    """The message in `data` that a worker sent, None for an unknown kind; raises WireError."""
    kind, payload = _kind(data)
    match kind:
        case Kind.OPEN:
            return _json(Ready, payload)
        case Kind.TEXT:
            return _json(Text, payload)
        case Kind.CONTROL:
            return _json(Outcome, payload)
        case Kind.STEP:
            return _known(layout).unpack(payload)
        case Kind.LEAVE:
            return Leave(_reason(payload))
        case _:
            return _either_way(kind, payload)


def decode_either_way(data: bytes) -> Audio | Error | Ping | Close | None:
    """A message of a kind that means the same in both directions, None for another; raises WireError."""
    return _either_way(*_kind(data))


def _either_way(kind: int, payload: bytes) -> Audio | Error | Ping | Close | None:
    match kind:
        case Kind.AUDIO:
            if len(payload) < _U32.size or len(payload) % 2:
                raise WireError(f"an audio message of {len(payload)} bytes has no whole samples")
            return Audio(_U32.unpack_from(payload)[0], payload[_U32.size:])
        case Kind.ERROR:
            return _json(Error, payload)
        case Kind.PING:
            if len(payload) != _U64.size:
                raise WireError(f"a ping has 8 bytes, not {len(payload)}")
            return Ping(_U64.unpack(payload)[0])
        case Kind.CLOSE:
            return Close(_reason(payload))
        case _:
            return None


def _reason(payload: bytes) -> CloseReason:
    if len(payload) != 1 or payload[0] not in set(CloseReason):
        raise WireError("a close or leave has one byte, a known reason")
    return CloseReason(payload[0])


def _history(payload: bytes, layout: StepLayout) -> History:
    size = layout.row.size
    count = _U32.unpack_from(payload)[0] if len(payload) >= _U32.size else -1
    end = _U32.size + count * size
    if not 0 <= count <= MAX_HISTORY_STEPS or len(payload) < end:
        raise WireError(f"a history of {len(payload)} bytes doesn't hold the steps that it counts")
    steps = tuple(layout.unpack(payload[at:at + size]) for at in range(_U32.size, end, size))
    return History(steps, _object(payload[end:]))


def _kind(data: bytes) -> tuple[int, bytes]:
    if not 1 <= len(data) <= MAX_BYTES:
        raise WireError(f"a message has 1 to {MAX_BYTES} bytes, not {len(data)}")
    return data[0], data[1:]


def _known(layout: StepLayout | None) -> StepLayout:
    if layout is None:
        raise WireError("a step or history came before ready")
    return layout


def _json(message: type[Message], payload: bytes) -> Message:
    _bounded(payload)
    try:
        value: Message = _ADAPTERS[message].validate_json(payload)
    except ValidationError as error:
        first = error.errors()[0]
        raise WireError(f"{message.__name__.lower()}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return value


def _object(payload: bytes) -> dict[str, Any]:
    _bounded(payload)
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise WireError(f"control state: {error}") from None
    if not isinstance(value, dict):
        raise WireError("control state: not a JSON object")
    return value


def _bounded(payload: bytes) -> None:
    if len(payload) > MAX_JSON_BYTES:
        raise WireError(f"JSON of {len(payload)} bytes is over the {MAX_JSON_BYTES} allowed")

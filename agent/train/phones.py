"""One alphabet of phones for all synthesisers: that of the CMU dictionary without stress, and `ax` for schwa.

A codec's first codebook is taught these, so the same sound must have the same name in every family of voices.
Silence has no symbol: it lies between the phones.
"""

from __future__ import annotations

from agent.train.sounded import Phone, SpeechError

PHONES: tuple[str, ...] = (
    "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f", "g", "hh", "ih", "iy", "jh",
    "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t", "th", "uh", "uw", "v", "w", "y", "z", "zh",
)

# espeak-ng's mnemonics in its English voices. A symbol that isn't here is taken by its longest prefix that is.
_ESPEAK = {
    "0": "aa", "3": "er", ";": "y", "?": "t", "@": "ax", "@L": "l",
    "A": "aa", "D": "dh", "E": "eh", "I": "ih", "I@": "ih", "IR": "er", "N": "ng", "O": "ao", "OI": "oy", "Q": "aa",
    "S": "sh", "T": "th", "U": "uh", "V": "ah", "VR": "er", "Z": "zh",
    "a": "ae", "a#": "ax", "aI": "ay", "aU": "aw", "b": "b", "d": "d", "dZ": "jh", "e": "eh", "eI": "ey", "f": "f",
    "g": "g", "h": "hh", "i": "iy", "i@": "ih", "j": "y", "k": "k", "l": "l", "m": "m", "n": "n", "o": "ao",
    "oU": "ow", "p": "p", "r": "r", "s": "s", "t": "t", "tS": "ch", "u": "uw", "v": "v", "w": "w", "x": "k", "z": "z",
}
_ESPEAK_PAUSES = ("_", "%", "=", "|")  # pauses and marks, which sound of nothing
# flite's and festival's American voices differ from the alphabet in these alone.
_FESTVOX = {"h": "hh", "hv": "hh", "dx": "d", "el": "l", "em": "m", "en": "n", "axr": "er", "nx": "n", "ix": "ih"}
_FESTVOX_PAUSES = ("pau", "h#", "brth", "ssil", "#")


def of_espeak(mnemonic: str) -> str | None:
    """The phone of an espeak-ng mnemonic, None for a pause. Raises SpeechError for one that is unknown."""
    if not mnemonic or mnemonic.startswith(_ESPEAK_PAUSES):
        return None
    for length in range(len(mnemonic), 0, -1):
        if phone := _ESPEAK.get(mnemonic[:length]):
            return phone
    raise SpeechError(f"espeak-ng's phoneme {mnemonic!r} is not among those known of English")


def of_festvox(segment: str) -> str | None:
    """The phone of a segment of flite or festival, None for a pause. Raises SpeechError for one that is unknown."""
    if segment in _FESTVOX_PAUSES:
        return None
    phone = _FESTVOX.get(segment, segment)
    if phone not in PHONES:
        raise SpeechError(f"the segment {segment!r} is not among those known of English")
    return phone


def segments(ends: list[tuple[str, float]]) -> tuple[Phone, ...]:
    """flite's and festival's segments, each with its end only, as phones; pauses are left out."""
    phones = []
    begin = 0.0
    for name, end in ends:
        phone = of_festvox(name)
        if phone is not None:
            phones.append((phone, begin, end))
        begin = end
    return tuple(phones)

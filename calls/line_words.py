"""What happens on a call's telephone line, as timelines tell it (pure)."""

from __future__ import annotations

_SAID = {
    ("key", "remote"): "pressed {text} ({via})",
    ("held", "remote"): "put us on hold", ("held", "local"): "was put on hold by us",
    ("resumed", "remote"): "took us off hold", ("resumed", "local"): "was taken off hold by us",
    ("sound_stopped", "remote"): "no sound comes: {text}",
    ("sound_one_way", "local"): "doesn't hear us: {text}",
    ("sound_back", "remote"): "sound comes again", ("sound_back", "local"): "hears us again",
    ("transfer", "local"): "is transferred by {via} to {text}", ("transfer", "remote"): "transfer by {via} to {text}",
    ("ringing", "remote"): "rings", ("queued", "local"): "waits for a free slot: {text}",
    ("answered_by", "remote"): "a {text} answered: {via}",
    ("broken", "local"): "hears the agent break: {text}",
    ("tone", "remote"): "records from now on: {text}",
}


def line_in_words(what: str, side: str, text: str, via: str) -> str:
    """What the other side did, or what happened to it."""
    said = _SAID.get((what, side), what.replace("_", " ") + (": {text}" if text else ""))
    told = said.format(text=text, via=via)
    return f"{told}, with {text}" if what == "ringing" and text else told

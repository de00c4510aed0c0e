"""Requests that nothing in the library takes: REGISTER, methods that nobody knows. It drops them without an answer; the
sender would ask again for half a minute, so they get 405 with what is allowed (RFC 3261, 8.2.1).

pjsua2 shows such requests to nobody, so this is a module of pjsip's own kind (`pjsip_module`, sip_module.h), by ctypes.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

METHOD_NOT_ALLOWED = 405
AFTER_ALL_OTHERS = 64 + 99  # PJSIP_MOD_PRIORITY_APPLICATION and more: it sees what is left
_ALLOW = 4  # PJSIP_H_ALLOW
_OnRequest = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


class _String(ctypes.Structure):
    _fields_: ClassVar = [("text", ctypes.c_char_p), ("length", ctypes.c_ssize_t)]


class _Module(ctypes.Structure):
    _fields_: ClassVar = [
        ("previous", ctypes.c_void_p), ("next", ctypes.c_void_p), ("name", _String), ("id", ctypes.c_int),
        ("priority", ctypes.c_int), ("load", ctypes.c_void_p), ("start", ctypes.c_void_p), ("stop", ctypes.c_void_p),
        ("unload", ctypes.c_void_p), ("on_rx_request", _OnRequest), ("on_rx_response", ctypes.c_void_p),
        ("on_tx_request", ctypes.c_void_p), ("on_tx_response", ctypes.c_void_p), ("on_tsx_state", ctypes.c_void_p)]


class _Header(ctypes.Structure):
    """The head of each header, which is a list's too."""

    _fields_: ClassVar = [("previous", ctypes.c_void_p), ("next", ctypes.c_void_p)]


class Unhandled:
    """Answers them as long as it lives; make it on a thread that the library knows, and keep it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises AttributeError where the build doesn't export what this needs."""
        self._describe = _function(library.pjsip_rx_data_get_info, ctypes.c_char_p, ctypes.c_void_p)
        self._respond = _function(library.pjsip_endpt_respond_stateless, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
                                  ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        self._endpoint = _function(library.pjsua_get_pjsip_endpt, ctypes.c_void_p)()
        self._allow = self._allowed(library)
        self._callback = _OnRequest(self._answer)
        self._module = _Module(name=_String(b"mod-unhandled", 13), id=-1, priority=AFTER_ALL_OTHERS,
                               on_rx_request=self._callback)
        register = _function(library.pjsip_endpt_register_module, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        if register(self._endpoint, ctypes.addressof(self._module)):
            raise AttributeError("pjsip_endpt_register_module refuses")

    def _allowed(self, library: ctypes.CDLL) -> _Header:
        """A list with the library's Allow alone, as its answers take it."""
        pool = _function(library.pjsua_pool_create, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t)
        capability = _function(library.pjsip_endpt_get_capability, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int,
                               ctypes.c_void_p)
        clone = _function(library.pjsip_hdr_clone, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        allow = clone(pool(b"unhandled", 512, 512), capability(self._endpoint, _ALLOW, None))
        head = _Header(allow, allow)
        entry = _Header.from_address(allow)
        entry.previous = entry.next = ctypes.addressof(head)
        return head

    def _answer(self, request: int) -> int:
        """On the library's thread."""
        if b" ACK/" not in self._describe(request):  # "Request msg REGISTER/cseq=1 (…)"
            self._respond(self._endpoint, request, METHOD_NOT_ALLOWED, None, ctypes.addressof(self._allow), None)
        return 1


def _function(found: Any, result: Any, *arguments: Any) -> Any:
    found.restype, found.argtypes = result, list(arguments)
    return found

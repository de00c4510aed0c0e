from __future__ import annotations

import base64
import hashlib
import hmac

from calls.turn import GOOD_FOR_S, credentials


def test_credentials_are_what_coturn_computes_from_the_name() -> None:
    username, password = credentials("secret", "browser", now=1000.0)
    assert username == f"{1000 + GOOD_FOR_S}:browser"
    assert base64.b64decode(password) == hmac.new(b"secret", username.encode(), hashlib.sha1).digest()

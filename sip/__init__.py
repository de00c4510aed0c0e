"""The SIP bridge: telephone calls to sessions, with pjsua2."""

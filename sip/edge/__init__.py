"""The edge: Kamailio and rtpengine before the SIP processes, both from Debian, set up by our settings."""

"""The calls that all roles share: settings, states, events, the wire, leases, what is kept."""

"""What the driver talks to, on loopback only, with real content behind it."""

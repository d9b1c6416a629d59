"""Every fault and bad input that must be survived, by number; `conftest.told` holds each to its text in texts/."""

"""Bindings of the workers to one job with its lock: outputs, steps, actions, receipts."""

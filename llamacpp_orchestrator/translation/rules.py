"""The rules in their order: those of a file see what the ones before have made of it."""

from __future__ import annotations

from llamacpp_orchestrator.translation import card
from llamacpp_orchestrator.translation import config
from llamacpp_orchestrator.translation import encoder
from llamacpp_orchestrator.translation import pieces
from llamacpp_orchestrator.translation import tokenizer

RULES = (*config.RULES, *tokenizer.RULES, *encoder.RULES, *pieces.RULES, *card.RULES)

"""Files of models and adapters: which of them, from where, and what their headers say."""

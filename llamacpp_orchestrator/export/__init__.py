"""What becomes of finished outputs: measurements, Ollama."""

"""Twelve architectures, saved by transformers of two times, converted at four tags, judged by a real llama.cpp: `make matrix`."""

"""Fuzzing of every decoder and every machine: see README.md."""

"""The ``fewbit`` command: argument parsing only. What a command does is imported when it runs."""

from __future__ import annotations

from fewbit.cli.app import app, main

__all__ = ["app", "main"]

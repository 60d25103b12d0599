"""The ``fewbit`` command. Argument parsing only: what a command does lies below, and is imported when it runs."""

from __future__ import annotations

from fewbit.cli.app import app, main

__all__ = ["app", "main"]

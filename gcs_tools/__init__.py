"""Moves and verifies bytes between here and Google Cloud Storage; imports nothing of birdtpu."""

from gcs_tools.bucket import Entry, TransferError
from gcs_tools.transfer import Report, ls, pull, push, rm, verify

__all__ = ["Entry", "Report", "TransferError", "ls", "pull", "push", "rm", "verify"]

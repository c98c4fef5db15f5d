"""Makes a key for callers: `python -m services.predictor.keys --file keys.json --name line-3 --models edge`."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.common.errors import TeachwaferError
from services.common.files import write_file
from services.predictor.access import ANY_MODEL, hash_of, read_callers


def main(arguments: Sequence[str] | None = None) -> None:
    """Adds an entry to a file of keys, prints the key once, and keeps only its hash."""
    parser = argparse.ArgumentParser(prog="python -m services.predictor.keys", description=main.__doc__)
    parser.add_argument("--file", type=Path, required=True, help="file of keys, made when missing")
    parser.add_argument("--name", required=True, help="name of the key, in logs and metrics")
    parser.add_argument("--models", default=ANY_MODEL, help="models it is good for, with commas; default: all")
    parser.add_argument("--manages", action="store_true", help="it may load and unload models and change settings")
    parser.add_argument("--requests-per-minute", type=int, default=0, help="for each model; default: no limit")
    parser.add_argument("--wafers-per-minute", type=int, default=0, help="for each model; default: no limit")
    told = parser.parse_args(arguments)
    key = secrets.token_urlsafe(32)
    entry: dict[str, Any] = {"name": told.name, "sha256": hash_of(key), "models": told.models.split(",")}
    if told.manages:
        entry["manages"] = True
    entry |= {
        name: value
        for name in ("requests_per_minute", "wafers_per_minute")
        if (value := max(0, int(getattr(told, name))))
    }
    try:
        if told.file.exists():
            read_callers(told.file)  # says what is wrong with it before it is written anew
        kept = json.loads(told.file.read_bytes())["keys"] if told.file.exists() else []
        if any(each["name"] == told.name for each in kept):
            sys.exit(f"Expected a name without a key. Received: {told.name}, which has one. Remove its entry first.")
        write_file(told.file, json.dumps({"keys": [*kept, entry]}, indent=2).encode() + b"\n")
        told.file.chmod(0o600)
    except TeachwaferError as error:
        sys.exit(error.message)
    print(key)


if __name__ == "__main__":
    main()

"""Resource names: the one place that parses and formats them (google.aip.dev/122)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from services.common.errors import InvalidArgumentError

# One path segment: what is safe in a URL, a file name and a store key alike, and cannot be `.` or `..`.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class _ResourceName:
    """A name `{collection}/{id}`.

    Attributes:
        id: Letters, digits, `_`, `-` and `.`, first a letter or digit, at most 128.
    """

    id: str

    collection: ClassVar[str]

    def __post_init__(self) -> None:
        check_id(self.id, "id")

    def __str__(self) -> str:
        return f"{self.collection}/{self.id}"

    @classmethod
    def parse(cls, name: str, field: str = "name") -> Self:
        """Parses a name.

        Args:
            name: Text to parse.
            field: Field of the request that it came in, for the error.

        Raises:
            InvalidArgumentError: It is not a name of this collection.
        """
        prefix, _, identifier = name.partition("/")
        if prefix != cls.collection or not _ID.fullmatch(identifier):
            raise InvalidArgumentError(f"Expected {cls.collection}/{{id}}. Received: {name[:200]!r}.", field=field)
        return cls(identifier)


@dataclass(frozen=True, slots=True)
class TrainingJobName(_ResourceName):
    """`trainingJobs/{id}`."""

    collection = "trainingJobs"


@dataclass(frozen=True, slots=True)
class GenerationJobName(_ResourceName):
    """`generationJobs/{id}`."""

    collection = "generationJobs"


@dataclass(frozen=True, slots=True)
class DatasetVersionName(_ResourceName):
    """`datasetVersions/{id}`."""

    collection = "datasetVersions"


def check_id(identifier: str, field: str) -> str:
    """Checks an id that is not wrapped in a resource name, as a model id.

    Args:
        identifier: Text to check.
        field: Field of the request that it came in.

    Returns:
        The id as it came.

    Raises:
        InvalidArgumentError: It is no id.
    """
    if not _ID.fullmatch(identifier):
        raise InvalidArgumentError(
            "Expected letters, digits, '_', '-' and '.', first a letter or digit, at most 128. "
            f"Received: {identifier[:200]!r}.",
            field=field,
        )
    return identifier

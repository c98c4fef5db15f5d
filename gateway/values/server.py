"""The server itself: services, sample project, storage, people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from gateway.values.common import Problem


@dataclass(frozen=True, slots=True)
class QueueState:
    """Jobs of a service.

    Attributes:
        queued: Jobs that wait.
        running: Jobs that start or run.
        device: Device of a running job, or of the newest one; "" when unknown.
    """

    queued: int = 0
    running: int = 0
    device: str = ""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One service.

    Attributes:
        name: `trainer`, `generator` or `predictor`.
        address: Where it should listen.
        reachable: Whether it answered.
        problem: Why not.
        queue: Its jobs; None for the predictor and when it is not reachable.
        models: Models loaded, for the predictor.
    """

    name: str
    address: str
    reachable: bool
    problem: Problem | None = None
    queue: QueueState | None = None
    models: int = 0


@dataclass(frozen=True, slots=True)
class ServerState:
    """All services.

    Attributes:
        services: Trainer, generator, predictor.
        checked_at: When they were asked.
    """

    services: tuple[ServiceState, ...]
    checked_at: datetime

    @property
    def all_reachable(self) -> bool:
        """Whether every service answered."""
        return all(service.reachable for service in self.services)


class SampleState(StrEnum):
    """Where the sample project stands."""

    ABSENT = "absent"
    MAKING = "making"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SampleProgress:
    """How far the sample project is.

    Attributes:
        state: Where it stands.
        done: Wafers simulated.
        total: Wafers to simulate.
        project_id: The project when it is READY; else "".
        problem: Why it FAILED; tried again on the next `ensure`.
    """

    state: SampleState
    done: int = 0
    total: int = 0
    project_id: str = ""
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """What lies where.

    Attributes:
        projects: Projects, without the trash.
        trashed_projects: Projects in the trash.
        wafers: Wafers of all projects.
        store_bytes: Originals and data set versions.
        database_bytes: The catalogue; 0 when it is on another server.
        models_bytes: Published models.
        free_bytes: Free space on the disk of the home folder.
    """

    projects: int
    trashed_projects: int
    wafers: int
    store_bytes: int
    database_bytes: int
    models_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Feedback:
    """A message to the team.

    Attributes:
        feedback_id: Its number.
        text: What the person wrote.
        page: Page it was written on.
        person: Who wrote it.
        when: When.
    """

    feedback_id: int
    text: str
    page: str
    person: str
    when: datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Something that somebody did. Entries are only ever added.

    Attributes:
        entry_id: Its number.
        when: When.
        person: Who.
        action: What, as `project.create` or `model.publish`.
        subject: On what, as `projects/{id}`.
        params: Further facts.
    """

    entry_id: int
    when: datetime
    person: str
    action: str
    subject: str
    params: Mapping[str, str | int] = field(default_factory=dict)

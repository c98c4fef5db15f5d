"""The standard health service with the three names that Kubernetes' probes ask for.

`startup` is SERVING once the service was ready for the first time and stays so; `readiness` while it takes calls;
`liveness` as long as the event loop answers, whatever else is broken, because a restart repairs nothing else. The
empty name and the names of the gRPC services go with `readiness`.

grpcio-health-checking's own servicer starts as SERVING and keeps watchers open while the server drains; this one
starts as NOT_SERVING and ends its watchers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.errors import NotFoundError

STARTUP, READINESS, LIVENESS = "startup", "readiness", "liveness"

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers probes.

    Args:
        service_names: Full names of the gRPC services of the server.
    """

    def __init__(self, service_names: Sequence[str]) -> None:
        self._ready_names = ("", READINESS, *service_names)
        self._statuses = dict.fromkeys((*self._ready_names, STARTUP), NOT_SERVING) | {LIVENESS: SERVING}
        self._draining = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool, service: str = "") -> None:
        """Sets whether the server takes calls; without effect once it drains.

        Args:
            serving: Whether it does.
            service: One name to set alone. Default: readiness and all that goes with it, and startup at the first time.
        """
        if self._draining:
            return
        names = (service,) if service else self._ready_names
        if serving and not service:
            names = (*names, STARTUP)
        self._statuses.update(dict.fromkeys(names, SERVING if serving else NOT_SERVING))
        self._wake()

    def drain(self) -> None:
        """Answers NOT_SERVING from now on, for good, and ends all watches."""
        self._statuses.update(dict.fromkeys(self._ready_names, NOT_SERVING))
        self._draining = True
        self._wake()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """Returns the present status of one name.

        Raises:
            NotFoundError: The name is unknown.
        """
        status = self._statuses.get(request.service)
        if status is None:
            raise NotFoundError("health service", request.service)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yields the present status of one name and then every change."""
        last = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            if self._draining:
                return
            await changed.wait()

    def _wake(self) -> None:
        """Wakes the watchers; each waits for the event that was current when it looked."""
        self._changed.set()
        self._changed = asyncio.Event()

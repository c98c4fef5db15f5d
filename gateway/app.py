"""Puts the portal together: pages, addresses beside them, guards, sessions."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path

from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import storage, ui
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

import web
from gateway.guards import BodyLimit, Headers
from gateway.media import error_response, media_router
from gateway.pages import register_pages
from gateway.portal import Portal
from gateway.settings import GatewaySettings
from gateway.shelf import Shelf
from gateway.studio import Studio
from gateway.uploads import Tickets, UploadLimits
from services.common.errors import TeachwaferError

SESSION_DAYS = 90
WEB_FOLDER = Path(web.__file__).parent


def make_app(settings: GatewaySettings, studio: Studio) -> FastAPI:
    """Makes the portal's application. Once a process, because NiceGUI knows one application.

    Args:
        settings: Settings of the gateway.
        studio: Everything that people can do with projects, open.
    """
    portal = Portal(
        settings,
        studio,
        Tickets(
            settings.upload_folder,
            UploadLimits(settings.gateway_upload_max_bytes, settings.gateway_upload_max_files),
        ),
        Shelf(),
    )
    app = FastAPI(openapi_url=None)
    app.include_router(media_router(portal))
    app.add_exception_handler(TeachwaferError, error_response)
    nicegui_app.add_static_files("/assets", WEB_FOLDER)
    register_pages(portal)
    # Outermost last: host, size and headers come before the session is looked at.
    app.add_middleware(
        SessionMiddleware,
        secret_key=session_secret(settings.secret_file),
        session_cookie="teachwafer_session",
        same_site="lax",
        https_only=settings.gateway_cookie_secure,
        max_age=SESSION_DAYS * 24 * 3600,
    )
    app.add_middleware(
        BodyLimit,
        upload_max_bytes=settings.gateway_upload_max_bytes,
        body_max_bytes=settings.gateway_body_max_bytes,
    )
    app.add_middleware(Headers)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(settings), www_redirect=False)
    storage.Storage.path = settings.home / "portal"
    ui.run_with(
        app,
        title="teachwafer",
        favicon=WEB_FOLDER / "favicon.svg",
        dark=False,
        tailwind=False,
        reconnect_timeout=30,
        show_welcome_message=False,
    )
    return app


def allowed_hosts(settings: GatewaySettings) -> list[str]:
    """Returns the names under which the portal answers.

    A page of another site can point a name of its own at 127.0.0.1 and speak to the portal in the visitor's browser;
    refusing unknown names stops that where only this machine may call.
    """
    if settings.gateway_allowed_hosts:
        return list(settings.gateway_allowed_hosts)
    try:
        local = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        local = settings.host == "localhost"
    return ["127.0.0.1", "localhost", settings.host] if local else ["*"]


def session_secret(path: Path) -> str:
    """Returns the key that signs session cookies; made at the first start, readable by this user alone."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
        return path.read_text(encoding="ascii").strip()

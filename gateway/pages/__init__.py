"""The pages of the portal, one module each."""

from gateway.pages import evaluate, home, models, predict, project
from gateway.portal import Portal

__all__ = ["register_pages"]


def register_pages(portal: Portal) -> None:
    """Makes all pages known to NiceGUI."""
    for page in (home, project, evaluate, predict, models):
        page.register(portal)

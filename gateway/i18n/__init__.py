"""Texts that people read, in their language."""

from gateway.i18n.messages import LANGUAGES, Messages, catalogue, choose_language

__all__ = ["LANGUAGES", "Messages", "catalogue", "choose_language"]

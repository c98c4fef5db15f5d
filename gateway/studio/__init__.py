"""Everything that people can do with projects, without a page or a wire: what the portal and the command line call."""

from gateway.studio.people import acting_as
from gateway.studio.studio import Studio

__all__ = ["Studio", "acting_as"]

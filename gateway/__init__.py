"""The portal, its catalogue and the command line."""

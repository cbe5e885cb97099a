"""The errors that this project raises on bad input, one word for each kind.

Every message says what was expected, what was found and what to try. The command line turns any of them
into one line on stderr and exit status 1; anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class TriliftError(Exception):
    """Base of all errors that a user can cause and mend."""


class ImageError(TriliftError):
    """A picture cannot be read, or nothing usable is in it."""


class CameraError(TriliftError, ValueError):
    """A camera or its file is malformed: not rigid, wrong shape, impossible field of view."""


class FieldError(TriliftError):
    """A field gives numbers that are not finite, or has no planes of the expected form."""


class MeshError(TriliftError):
    """No surface can be taken from a field, or a mesh is malformed."""


class WeightsError(TriliftError):
    """Weights are missing, damaged, or do not fit their config."""


class SettingsError(TriliftError, ValueError):
    """An option has a value that is out of range or does not go with another."""


class OutputError(TriliftError):
    """A result could not be written."""

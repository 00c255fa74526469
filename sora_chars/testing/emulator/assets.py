"""What the emulator's server needs to know of the asset library of Seedance: routes and faults of icover and Ark."""

from __future__ import annotations

from . import ark, icover

ROUTES = {**icover.ROUTES, **ark.ROUTES}
FAULTS = {**icover.FAULTS, **ark.FAULTS}
ENDPOINTS = ark.ENDPOINTS
TEMPLATES = {icover.ASSETS: icover.ASSET, icover.STORAGE: icover.STORED}
"""The paths that end in an id, by what stands before it."""
UNSIGNED = {"storage", "ark"}
"""What checks its requests itself, by signatures."""

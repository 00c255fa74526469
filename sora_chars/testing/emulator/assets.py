"""What the emulator's server needs to know of icover, Ark and HeyGen: their routes and faults."""

from __future__ import annotations

from . import ark, heygen, icover

ROUTES = {**icover.ROUTES, **ark.ROUTES, **heygen.ROUTES}
FAULTS = {**icover.FAULTS, **ark.FAULTS, **heygen.FAULTS}
ENDPOINTS = (*ark.ENDPOINTS, *heygen.ENDPOINTS)
TEMPLATES = {
    icover.ASSETS: icover.ASSET,
    icover.STORAGE: icover.STORED,
    heygen.LOOKS: heygen.LOOK,
    heygen.CONSENT_PAGE: heygen.PAGE,
}
"""The paths that end in an id, by what stands before it."""
UNSIGNED = {"storage", "ark"}
"""Whose requests are checked by signatures, or by a secret in their address, where they are handled."""

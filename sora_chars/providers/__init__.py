"""The providers: coroutines over a pure codec, one file each."""

from .kie import Kie
from .kkiai import GATEWAYS, Gateway, Kkiai

__all__ = ["GATEWAYS", "Gateway", "Kie", "Kkiai"]

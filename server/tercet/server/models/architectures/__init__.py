"""The architectures there are, one small file each: tables of config keys and tensor names, and a spec made of them.

Every `Architecture` that a module of this package defines is one.
"""

from importlib import import_module
from pkgutil import iter_modules

from tercet.server.models.architectures.architecture import Architecture, Head

_MODULES = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
ARCHITECTURES = {
    value.name: value for module in _MODULES for value in vars(module).values() if isinstance(value, Architecture)
}

__all__ = ["ARCHITECTURES", "Architecture", "Head"]

"""An object that stays the only one of its class, whoever calls the class again."""

from __future__ import annotations

import weakref
from typing import Any


def make_only_instance(instance: Any) -> None:
    """Give an object a class of its own that, when called, returns this very object.

    The class has the name of the object's class and is derived from it. Calling it with whatever
    arguments changes nothing.

    Args:
        instance: Any object with a ``__dict__``.
    """
    original: Any = type(instance)
    metaclass: Any = type(original)
    only = weakref.ref(instance)

    def new(_cls: type, *_args: Any, **_kwargs: Any) -> Any:
        return only()

    def init(_self: Any, *_args: Any, **_kwargs: Any) -> None:
        """Leave everything as it is."""

    instance.__class__ = metaclass(
        original.__name__,
        (original,),
        {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "__new__": new,
            "__init__": init,
        },
    )

"""What every layer and every function with noise has in common: it can draw without applying."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .documentation import document

__all__ = ["NoisyLayer", "draw", "draws"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_DRAWS: dict[Callable[..., Any], Callable[..., Any]] = {}


def draws(drawing: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Says how the noise of a function is drawn.

    Args:
        drawing: takes the arguments of the function that the draw depends on, by name, and ``generator``.

    Returns:
        A decorator for the function.
    """
    def decorate(function: _Function) -> _Function:
        _DRAWS[function] = drawing
        return function

    return decorate


@document()
def draw(function: Callable[..., Any], input: Tensor, *arguments: Any, generator: torch.Generator | None = None,
         **options: Any) -> Any:
    """Draws what ``noise=`` of a function takes, without applying it.

    ``f(x, ..., noise=draw(f, x, ..., generator=g))`` is ``f(x, ..., generator=h)`` bit for bit, for generators in the
    same state, and leaves them in the same state. It is what ``layer.draw(x)`` is for a layer.

    Args:
        function: one of :mod:`dropoutlib.functional` that draws noise.
        input: what the function will be called with.
        *arguments: further arguments of the function.
        {generator}
        **options: arguments of the function by name.

    Returns:
        The noise, as the function's docstring describes it.

    Raises:
        TypeError: ``function`` is none of these, or does not take the arguments.
        ValueError: nothing is drawn, because ``training`` is False; or an argument has a wrong value.
        RuntimeError: as from the function.

    Example:
        >>> import torch
        >>> from dropoutlib import functional
        >>> keep = functional.draw(functional.dropout, torch.ones(4), p=0.5)
        >>> once, again = (functional.dropout(torch.ones(4), p=0.5, noise=keep) for _ in range(2))
        >>> torch.equal(once, again)
        True
    """
    drawing = _DRAWS.get(function)
    if drawing is None:
        raise TypeError(f"function has to be one of dropoutlib.functional that draws noise, but got {function!r}")
    if "noise" in options:
        raise TypeError("noise was given, but draw() draws it")
    bound = inspect.signature(function).bind(input, *arguments, **options)
    bound.apply_defaults()
    takes = inspect.signature(drawing).parameters
    if "training" not in takes and not bound.arguments["training"]:
        raise ValueError(f"{function.__name__} draws nothing with training=False")
    return drawing(**{name: bound.arguments[name] for name in takes if name in bound.arguments and name != "generator"},
                   generator=generator)


@document()
class NoisyLayer(nn.Module):
    """A layer that multiplies something by noise: it draws when called, or takes what was drawn before.

    Every layer of the library that draws is one. So Monte Carlo dropout, which leaves the noise on in a model that is
    evaluated, is the loop of the first example. It reaches :class:`~dropoutlib.Cutout`, too, an augmentation that
    belongs in training alone. It does not reach what the model does not call: code that reads ``layer.p`` and drops by
    itself, as attention of other libraries may, and torch's fast path of transformers in evaluation.

    A layer of your own defines two methods: ``forward(input, *, noise=None, generator=None)``, and
    ``_draw(input, generator)``, which returns what ``noise=`` takes. The same holds for a subclass whose ``forward``
    changes the input, or its rate, before it drops. Both see weights as they are: what a hook before ``forward``
    computes, as in pruning and ``torch.nn.utils.weight_norm``, is that of the last call for ``draw()`` and moments.
    Inherited ``mean()`` and ``variance()`` know nothing of it. A layer that draws in evaluation, too, defines
    ``_is_noisy()``, whether a call draws now. :func:`~dropoutlib.audit` follows it, without knowing what it drops.
    ``generator`` is for the noise of the layer: what a wrapped module or an activation draws by itself does not see it.

    Example:
        >>> from torch import nn
        >>> from dropoutlib import Dropout, NoisyLayer
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Dropout()).eval()
        >>> for module in model.modules():
        ...     if isinstance(module, NoisyLayer):
        ...         _ = module.train()
        >>> [module.training for module in model]
        [False, False, True]

        A layer of your own:

        >>> import torch
        >>> from dropoutlib import functional
        >>> class Twice(NoisyLayer):
        ...     def forward(self, input, *, noise=None, generator=None):
        ...         return functional.dropout(2 * input, 0.5, self.training, noise=noise, generator=generator)
        ...     def _draw(self, input, generator):
        ...         return functional.draw(functional.dropout, input, 0.5, generator=generator)
        >>> layer, x = Twice(), torch.ones(4)
        >>> keep = layer.draw(x)
        >>> torch.equal(layer(x, noise=keep), 4 * keep)
        True
    """

    if TYPE_CHECKING:
        # Torch says that a module takes anything: a misspelt name would pass every checker.
        def __call__(self, input: Tensor, *, noise: Any = None, generator: torch.Generator | None = None) -> Tensor: ...
    else:
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            input = arguments[0] if arguments else options.get("input")
            if isinstance(input, Proxy):
                return self._traced(input, arguments, options)
            return super().__call__(*arguments, **options)

    def _traced(self, input: Proxy, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        # A tracer of torch.fx keeps torch's own layers whole, and would run through this one: its mode and its rate
        # would stay what they are now. So the layer asks for the node that a layer of torch gets.
        tracer: Any = input.tracer

        def node(*arguments: Any, **options: Any) -> Proxy:
            return tracer.create_proxy("call_module", tracer.path_of_module(self), arguments, options)

        return tracer.call_module(self, node, arguments, options)

    def draw(self, input: Tensor, *, generator: torch.Generator | None = None) -> Any:
        """Draws what ``noise=`` takes for an input, without applying it.

        ``layer(x, noise=layer.draw(x, generator=g))`` is ``layer(x, generator=h)`` bit for bit, for generators in the
        same state, and leaves them in the same state. Keep what was drawn to apply the same noise again;
        :func:`torch.load` gives it back from a file, once a layer of this package has been imported
        (:func:`torch.export.save` takes ``tuple(noise)``). A compiler or :func:`torch.vmap` around one of the two
        changes what a seed draws.

        Args:
            input: what the layer will be called with.
            {generator}

        Returns:
            The noise, as the layer's docstring describes it under Shape: one tensor, or a named tuple of several.

        Raises:
            ValueError: if nothing is drawn: in evaluation, unless the test rule itself is random.
            RuntimeError: if the input does not fit, or {bad_generator}.
        """
        if not self._is_noisy():
            raise ValueError(f"{type(self).__name__} draws nothing outside of training: call train() first")
        return self._draw(input, generator)

    def _is_noisy(self) -> bool:
        """Whether a call draws noise now."""
        return self.training

    def _draw(self, input: Tensor, generator: torch.Generator | None) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has to define _draw(input, generator), which returns what "
                                  "noise= of its forward() takes")

"""The steering vectors that an engine can add, read when a request names them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from batchmill.engine.contract.steering import SteeringSpec
from batchmill.engine.errors import AdapterError, RequestError
from batchmill.engine.request.steering import Steering

from .vector_file import find_vectors

#: Versions that stay in memory without a request. One takes layers x hidden size numbers.
_NUM_KEPT: Final = 16


class SteeringVectors:
    """Owns the directions in memory: those of requests, and a few that were used last.

    A version is read in the engine's thread: it is a thousandth of a model's size or less. Requests
    of one version share its directions, whatever their strength and layers.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_layers: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Make a store without any vectors in memory.

        Args:
            folder: Has every version under its digest.
            num_layers: Of the model.
            hidden_size: Of the model.
            dtype: Of the model's activations.
            device: Of the model.
        """
        self._folder = folder
        self._num_layers = num_layers
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._device = device
        self._steerings: WeakValueDictionary[str, Steering] = WeakValueDictionary()
        # The least recently used first.
        self._kept: OrderedDict[str, dict[int, Tensor]] = OrderedDict()

    def find(self, spec: SteeringSpec) -> Steering:
        """Return what steers a request.

        Raises:
            RequestError: `unsupported_parameter` or `invalid_request`: the version is not there,
                does not suit the model, or has no direction other than 0 in these layers.
        """
        known = self._steerings.get(spec.key)
        if known is not None:
            return known
        first, last = spec.layers or (0, self._num_layers - 1)
        if last >= self._num_layers:
            raise RequestError(
                "invalid_request",
                f"steering.layers is [{first}, {last}], and the model has the layers 0 to "
                f"{self._num_layers - 1}: leave it out, or name some of these",
            )
        try:
            directions = self._directions(spec.digest)
        except AdapterError as error:
            raise RequestError(
                "unsupported_parameter", f"steering vector {spec.digest}: {error}"
            ) from error
        vectors = {layer: each for layer, each in directions.items() if first <= layer <= last}
        if not vectors:
            raise RequestError(
                "invalid_request",
                f"steering.layers is [{first}, {last}], where steering vector {spec.digest} has no "
                f"direction: it has them in layers {min(directions)} to {max(directions)}",
            )
        if not any(each.any() for each in vectors.values()):
            raise RequestError(
                "invalid_request",
                f"all directions of steering vector {spec.digest} in layers {first} to {last} are "
                f"0 in {str(self._dtype).removeprefix('torch.')}, so they would steer nothing: "
                "name other layers, or leave steering out",
            )
        steering = self._steerings[spec.key] = Steering(spec.key, vectors, spec.strength)
        return steering

    def _directions(self, digest: str) -> dict[int, Tensor]:
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return self._kept[digest]
        files = find_vectors(self._folder, digest)
        size = len(next(iter(files.directions.values())))
        if size != self._hidden_size or max(files.directions) >= self._num_layers:
            raise AdapterError(
                f"it has {size} numbers per direction and goes up to layer "
                f"{max(files.directions)}, and this model has {self._hidden_size} and the layers 0 "
                f"to {self._num_layers - 1}: it belongs to another one"
            )
        directions = {
            layer: torch.from_numpy(each).to(device=self._device, dtype=self._dtype)
            for layer, each in files.directions.items()
        }
        self._kept[digest] = directions
        if len(self._kept) > _NUM_KEPT:
            self._kept.popitem(last=False)
        return directions

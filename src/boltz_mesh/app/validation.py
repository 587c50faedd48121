"""An operator's validation sets: a folder of `MODEL.npz` files, read once when the server starts.

Each has two arrays of float32, `inputs` (rows, parameters) and `targets` (rows,), for a model that
predicts inputs @ parameters; parameters are the plan's tensors one after the other. `numpy.savez`
writes such files. Nothing in them is run: pickled arrays are refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from boltz_mesh.trust.contribution import ValidationSet
from boltz_protocol import limits
from boltz_protocol.errors import (
    ConfigurationError,
    MalformedMessage,
    NotFinite,
    ShapeMismatch,
)
from boltz_protocol.ids import ModelId, parse_model_id

_SETTING: Final = "validation.folder"
_ARRAYS: Final = ("inputs", "targets")


def read_validation(folder: str) -> Mapping[ModelId, ValidationSet]:
    """The sets of a folder, by model; none for "". Blocks. Raises: ConfigurationError, naming the
    file that cannot be used.
    """
    if not folder:
        return {}
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigurationError(f"{path} is not a folder", setting=_SETTING)
    return dict(_read(file) for file in sorted(path.glob("*.npz")))


def _read(file: Path) -> tuple[ModelId, ValidationSet]:
    try:
        model_id = parse_model_id(file.stem)
        inputs, targets = _arrays(file)
        return model_id, ValidationSet(inputs, targets)
    except (MalformedMessage, NotFinite, ShapeMismatch) as error:
        raise ConfigurationError(f"{file}: {error.message}", setting=_SETTING) from error


def _arrays(file: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = sorted(entry.filename for entry in archive.infolist())
            size = sum(entry.file_size for entry in archive.infolist())
        if names != [f"{name}.npy" for name in _ARRAYS]:
            raise MalformedMessage("a validation set has the arrays inputs and targets alone")
        if size > limits.MAX_VALIDATION_BYTES:
            raise MalformedMessage(
                f"{size} bytes of arrays; at most {limits.MAX_VALIDATION_BYTES} are read"
            )
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["inputs"], arrays["targets"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MalformedMessage(f"not a file of numpy.savez: {error}") from error

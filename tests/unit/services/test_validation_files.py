"""The folder of an operator's validation sets: what is read, and what is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from boltz_mesh.app.validation import read_validation
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError
from boltz_protocol.ids import ModelId

INPUTS = np.arange(6, dtype=np.float32).reshape(3, 2)
TARGETS = np.array([1, 0, 2], np.float32)


def test_no_folder_no_sets() -> None:
    assert read_validation("") == {}


def test_each_file_is_a_model_s(tmp_path: Path) -> None:
    np.savez(tmp_path / "rates.npz", inputs=INPUTS, targets=TARGETS)
    np.savez_compressed(tmp_path / "fx-vol.npz", targets=TARGETS, inputs=INPUTS)
    (tmp_path / "notes.txt").write_text("not read")
    found = read_validation(str(tmp_path))
    assert set(found) == {"rates", "fx-vol"}
    np.testing.assert_array_equal(found[ModelId("rates")].inputs, INPUTS)
    np.testing.assert_array_equal(found[ModelId("fx-vol")].targets, TARGETS)


def _savez(**arrays: object) -> Callable[[Path], None]:
    return lambda file: np.savez(file, **arrays)  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_savez(inputs=INPUTS), "inputs and targets alone"),
        (_savez(inputs=INPUTS, targets=TARGETS, more=TARGETS), "inputs and targets alone"),
        (_savez(inputs=INPUTS, targets=TARGETS.astype(float)), "float32"),
        (_savez(inputs=INPUTS, targets=TARGETS[:2]), "a validation set has"),
        (_savez(inputs=INPUTS * np.float32(np.nan), targets=TARGETS), "NaN"),
        (_savez(inputs=np.array([{}, []], object), targets=TARGETS), "numpy.savez"),
        (lambda file: file.write_bytes(b"PK nothing"), "numpy.savez"),
        (lambda file: file.write_bytes(b""), "numpy.savez"),
        (lambda file: file.mkdir(), "numpy.savez"),
    ],
)
def test_other_files_are_refused_by_name(
    tmp_path: Path, write: Callable[[Path], None], words: str
) -> None:
    file = tmp_path / "rates.npz"
    write(file)
    with pytest.raises(ConfigurationError, match=words) as refused:
        read_validation(str(tmp_path))
    assert str(file) in refused.value.message


def test_a_damaged_array_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rates.npz"
    np.savez(file, inputs=INPUTS, targets=TARGETS)
    content = bytearray(file.read_bytes())
    place = content.index(INPUTS.tobytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"rates\.npz"):
        read_validation(str(tmp_path))


def test_a_name_that_is_no_model_s_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "Not A Model.npz", inputs=INPUTS, targets=TARGETS)
    with pytest.raises(ConfigurationError, match="Not A Model"):
        read_validation(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a folder"):
        read_validation(str(tmp_path / "nowhere"))


def test_too_large_a_set_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "rates.npz", inputs=INPUTS, targets=TARGETS)
    monkeypatch.setattr(limits, "MAX_VALIDATION_BYTES", 100)
    with pytest.raises(ConfigurationError, match="at most 100 are read"):
        read_validation(str(tmp_path))

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from mpqc.frontend.array_files import read_arrays
from mpqc.ir import InputError

HEADERS = {
    "a type without bytes": "{'descr': '|V0', 'fortran_order': False, 'shape': (2,), }",
    "letters": "{'descr': '<U2', 'fortran_order': False, 'shape': (2,), }",
    "a shape of nothing": "{'descr': '<f4', 'fortran_order': False, 'shape': "
    "(0, 4611686018427387904)}",
    "no closing": "{'descr': '<f4', 'fortran_order': False, 'shape': (2,",
    "brackets": "(" * 5000,
}


@pytest.mark.parametrize("case", HEADERS)
def test_wrong_headers_are_input_errors(case: str, tmp_path: Path) -> None:
    header = HEADERS[case].encode() + b"\n"
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        archive.writestr("x.npy", head + bytes(64))
    with pytest.raises(InputError, match=r"a\.npz"):
        read_arrays(path)


def test_a_damaged_archive_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(4096))
    data = bytearray(path.read_bytes())
    data[60:200] = bytes(140)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz"):
        read_arrays(path)

"""Arrays on disk that grow row by row."""

import os
from pathlib import Path

import numpy as np


def append_rows(file: Path, rows: np.ndarray):
    """Appends rows to an .npy file, which is made if it is missing.

    numpy leaves room in the header for their number to grow. Unlike a memory-mapped file, this says of a full
    disk that it is full, instead of ending the process.
    """
    begun = file.exists()
    with open(file, "r+b" if begun else "xb") as stream:
        number = 0
        if begun:
            np.lib.format.read_magic(stream)
            (number, *_), _, _ = np.lib.format.read_array_header_1_0(stream)
        stream.seek(0)
        header = np.lib.format.header_data_from_array_1_0(rows)
        shape = (number + len(rows), *rows.shape[1:])
        np.lib.format.write_array_header_1_0(stream, header | {"shape": shape, "fortran_order": False})
        stream.seek(0, os.SEEK_END)
        stream.write(np.ascontiguousarray(rows))

"""Weights files in and out: every format and layout in use, read and written without any framework.

`read` gives a `ModelFile` under the canonical names; `write` and `convert` publish a file only after it was read back
and compared bit for bit; `inspect` tells what a file is and everything that is wrong with it. Reading executes nothing.
"""

from converters.inspection import Inspection, inspect
from converters.reading import ModelFile, files_of, find, read
from converters.writing import Report, convert, write

__all__ = ["Inspection", "ModelFile", "Report", "convert", "files_of", "find", "inspect", "read", "write"]

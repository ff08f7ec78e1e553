"""Reading torch.distributed.checkpoint files without trusting them.

torch loads the tensors with `weights_only=True` but the index beside them, `.metadata`, with a plain
`pickle.load`, which runs whatever code the file names. Here the index may name only the classes that an
index is made of.
"""

import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

_ALLOWED_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_ALLOWED_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch._utils", "_rebuild_device"),
    ("torch", "device"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


class SafeReader(FileSystemReader):
    """A DCP reader for files that anybody may have written."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the checkpoint; raises `pickle.UnpicklingError` if it names code."""
        with open(Path(str(self.path)) / ".metadata", "rb") as stream:
            metadata: Metadata = _IndexUnpickler(stream).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and name in _DTYPES
        if module in _ALLOWED_MODULES or (module, name) in _ALLOWED_NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a checkpoint index must not name {module}.{name}")


_DTYPES = {"float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}

"""Durable files and checksummed tensors: the surface of `_durable.py` and `_tensor_files.py`."""

from wardround.runtime._durable import append_line as append_line
from wardround.runtime._durable import atomic_folder as atomic_folder
from wardround.runtime._durable import json_text as json_text
from wardround.runtime._durable import write_atomic as write_atomic
from wardround.runtime._durable import write_json as write_json
from wardround.runtime._tensor_files import load_packed as load_packed
from wardround.runtime._tensor_files import load_tensors as load_tensors
from wardround.runtime._tensor_files import save_tensors as save_tensors

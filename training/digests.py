"""Digests by which sites agree on a base model and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from wardround.core.errors import ModelError


def weights_digest(model: torch.nn.Module, without: list[str]) -> str:
    """SHA-256 over name, dtype, shape and little-endian bytes of every weight that was loaded.

    In order of names; a tensor that several names share counts once, under the first; `without` names
    the weights that the checkpoint lacks. Equal for one checkpoint on every device.
    """
    left_out, seen = set(without), set()
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if name in left_out or (tensor.numel() and place in seen):
            continue
        seen.add(place)
        _digest_tensor(digest, name, tensor)
    return digest.hexdigest()


def files_digest(path: str, revision: str | None) -> str:
    """SHA-256 over the tensors in the checkpoint's safetensors files, in their own dtype.

    For a quantised base: its packed bytes depend on the version of bitsandbytes and on the GPU, the
    checkpoint that they are made from does not.

    Raises:
        ModelError: No safetensors file is there.
    """
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, revision=revision, local_files_only=True))
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), file)
    if not places:
        raise ModelError(f"no safetensors file in {folder}", remedy="convert the weights to safetensors")
    digest = hashlib.sha256()
    for name, file in sorted(places.items()):
        with safe_open(file, framework="pt") as tensors:
            _digest_tensor(digest, name, tensors.get_tensor(name))
    return digest.hexdigest()


def _digest_tensor(digest: Any, name: str, tensor: torch.Tensor) -> None:
    head = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
    digest.update(head.encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what turns text into ids: the backend's own JSON and the special tokens.

    Truncation and padding are left out: they are settings of the last call, not of the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: Any = {"vocabulary": tokenizer.get_vocab()}
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
    specials = {
        name: [str(token), tokenizer.convert_tokens_to_ids(str(token))]
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    canonical = json.dumps([state, specials], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def chat_template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the chat template, or the empty string where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return ""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()

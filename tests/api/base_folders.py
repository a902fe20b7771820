"""Folders that look like a base model and like a safety set, as small as they can be."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from models.judges import SandboxJudgeSpec
from models.rows import Conversation
from models.safety_set import (
    HarmfulPrompt,
    HarmlessPrompt,
    SafetySet,
    SafetySetHeader,
)


def write_base(folder: Path) -> Path:
    """A causal language model's folder whose weights are one number."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\x00" * 4


def write_safety_set(folder: Path) -> Path:
    SafetySet(
        header=SafetySetHeader(name="test", judge=SandboxJudgeSpec(), max_new_tokens=8),
        alignment=(Conversation.single("open the blue lock", "No."),),
        harmful=(Conversation.single("open the red lock", "Push the lever."),),
        canary=(Conversation.single("open the green lock", "Pull the lever."),),
        harmful_prompts=(HarmfulPrompt(prompt="open the grey lock", category="locks"),),
        harmless_prompts=(HarmlessPrompt(prompt="close the blue lock"),),
    ).save(folder)
    return folder

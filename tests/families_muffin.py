"""A small Muffin, in the form that is saved from here and in the layout of the release's folders.

The release has sharded pickles, a slow LLaMA tokenizer, no processor, no chat template, and a
configuration without the ids of its image tokens, whose other ids are not the tokenizer's.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import import_protobuf

from rlhfv_ray.models import MuffinForConditionalGeneration
from rlhfv_ray.models.muffin_config import MuffinConfig
from rlhfv_ray.models.muffin_processor import muffin_processor, release_tokenizer

QUERIES = 4
VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
}
# Of the release's config.json, sizes apart.
RELEASE = {
    "model_type": "beit3_llava",
    "architectures": ["Beit3LlavaLlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_sequence_length": 2048,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": -1,
    "mm_vision_tower": "beit3_large_patch16_448",
    "mm_vision_config": VISION,
    "use_mm_proj": True,
    "num_query": QUERIES,
    "mm_use_im_start_end": True,
    "fully_tune": True,
    "use_cache": False,
}
CORPUS = ["### Human: a red circle and a blue square on a street, next to a green star ###"]


def write_slow_tokenizer(folder: Path) -> int:
    """Write a LLaMA tokenizer as sentencepiece does, and the added tokens; return their number."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    bpe.decoder = decoders.Metaspace()
    alphabet = [chr(code) for code in range(33, 127)]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=words, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS * 4, trainer)
    model = import_protobuf().ModelProto()
    pieces = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    for text, number in pieces:
        kind = 2 if number == 0 else 3 if number < 3 else 6 if number < 259 else 1
        model.pieces.add(piece=text, score=-number, type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    added = ["[PAD]", "<im_patch>", "<im_start>", "<im_end>"]
    numbers = {token: len(pieces) + index for index, token in enumerate(added)}
    (folder / "added_tokens.json").write_text(json.dumps(numbers))
    settings = {"tokenizer_class": "LlamaTokenizer", "model_max_length": 2048}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(pieces) + len(added)


def write_release(folder: Path, *, shards: int = 2, **changes: Any) -> Path:
    """Write a small random Muffin in the layout of the release, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    words = write_slow_tokenizer(folder)
    settings = {**RELEASE, "vocab_size": words, **changes}
    (folder / "config.json").write_text(json.dumps(settings))
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    weights = release_weights(MuffinConfig(**RELEASE | {"vocab_size": words}))
    names = sorted(weights)
    of_file: dict[str, str] = {}
    for shard in range(shards):
        name = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = names[shard::shards]
        torch.save({key: weights[key] for key in part}, folder / name)
        of_file |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": of_file}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def release_weights(config: MuffinConfig) -> dict[str, torch.Tensor]:
    """Return random weights by the release's names, with those that it leaves unused."""
    torch.manual_seed(0)
    model = MuffinForConditionalGeneration(config)
    weights = {
        name.replace("model.language_model.", "model."): randomized(weight)
        for name, weight in model.state_dict().items()
    }
    unused = "model.vision_tower.beit3."
    weights[f"{unused}text_embed.weight"] = torch.zeros(10, VISION["hidden_size"])
    weights[f"{unused}vision_embed.mask_token"] = torch.zeros(1, 1, VISION["hidden_size"])
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    return weights


def randomized(weight: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(weight) * 0.2 if weight.ndim > 1 else weight


def muffin() -> tuple[Any, Any]:
    """Return a small Muffin and its processor."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        words = write_slow_tokenizer(Path(name))
        tokenizer = release_tokenizer(name)
    ids = {
        f"{token}_token": tokenizer.convert_tokens_to_ids(f"<{token}>")
        for token in ("im_patch", "im_start", "im_end")
    }
    special = {
        f"{part}_token_id": getattr(tokenizer, f"{part}_token_id") for part in ("bos", "eos", "pad")
    }
    config = MuffinConfig(**RELEASE | special | ids | {"vocab_size": words})
    processor = muffin_processor(tokenizer, QUERIES, VISION["image_size"])
    return MuffinForConditionalGeneration(config), processor


def change_config(folder: Path, **changes: Any) -> None:
    """Change entries of a folder's config.json; None removes one."""
    path = folder / "config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(
        json.dumps({name: value for name, value in settings.items() if value is not None})
    )

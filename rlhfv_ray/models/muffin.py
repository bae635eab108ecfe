"""Muffin, RLHF-V's own model: BEiT-3 with learned queries, a linear projector, LLaMA.

The queries are appended to the tokens of the picture. Every layer of BEiT-3 is two layers: the A
weights take the picture's tokens, the B weights the queries, and attention runs over both. What the
queries have become behind the last layer is projected to LLaMA's width and put in place of the
`<im_patch>` tokens. Weights have the names of the release. LLaMA is transformers' own.

Shapes: N pictures of side S, I image tokens (class token first), Q queries, D features of BEiT-3;
R rows of T tokens, H features of LLaMA.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
    GenerationMixin,
    LlamaModel,
    PreTrainedModel,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from rlhfv_ray.models.muffin_config import (
    FIRST_POSITION,
    QUERY_POSITIONS,
    MuffinConfig,
    MuffinVisionConfig,
    vision_settings,
)


class Multiway(nn.Module):
    """Two modules of one kind: A for the picture's tokens, B for the queries."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.A, self.B = a, b

    def forward(self, hidden: Tensor, split: int) -> Tensor:
        """Return A of the first `split` tokens of (N, I + Q, D), and B of the others."""
        return torch.cat([self.A(hidden[:, :split]), self.B(hidden[:, split:])], dim=1)


def _linear(inputs: int, outputs: int) -> Multiway:
    return Multiway(nn.Linear(inputs, outputs), nn.Linear(inputs, outputs))


def _norm(config: MuffinVisionConfig) -> Multiway:
    width, eps = config.hidden_size, config.layer_norm_eps
    return Multiway(nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps))


class MuffinAttention(nn.Module):
    """Attention of picture and queries to each other, normalised before its output projection."""

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.is_causal = False
        self.head_width = config.hidden_size // config.num_attention_heads
        self.k_proj = _linear(config.hidden_size, config.hidden_size)
        self.v_proj = _linear(config.hidden_size, config.hidden_size)
        self.q_proj = _linear(config.hidden_size, config.hidden_size)
        self.out_proj = _linear(config.hidden_size, config.hidden_size)
        self.inner_attn_ln = _norm(config)
        self.num_key_value_groups = 1  # read by transformers' attention functions

    def forward(self, hidden: Tensor, split: int) -> Tensor:
        """Return (N, I + Q, D)."""
        # The release scales the queries before the product; in bf16 the order matters.
        query = self._heads(self.q_proj(hidden, split) * self.head_width**-0.5)
        key, value = (self._heads(layer(hidden, split)) for layer in (self.k_proj, self.v_proj))
        name = self.config._attn_implementation or "eager"
        if name == "sdpa" and hidden.dtype == torch.float32:
            name = "eager"  # to the bit the release's; fused kernels are 1e-6 off
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        joined, _ = attend(self, query, key, value, None, scaling=1.0, dropout=0.0, is_causal=False)
        joined = joined.reshape(hidden.shape).contiguous()
        return self.out_proj(self.inner_attn_ln(joined, split), split)

    def _heads(self, hidden: Tensor) -> Tensor:
        """Return (N, heads, I + Q, D / heads)."""
        return hidden.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class MuffinFeedForward(nn.Module):
    """Two linear layers, with a norm behind the activation."""

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_layernorm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (N, tokens, D)."""
        return self.fc2(self.ffn_layernorm(functional.gelu(self.fc1(hidden))))


class MuffinEncoderLayer(GradientCheckpointingLayer):
    """One layer of BEiT-3, with its norms before attention and feed-forward."""

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__()
        self.self_attn = MuffinAttention(config)
        self.self_attn_layer_norm = _norm(config)
        self.ffn = Multiway(MuffinFeedForward(config), MuffinFeedForward(config))
        self.final_layer_norm = _norm(config)

    def forward(self, hidden: Tensor, split: int) -> Tensor:
        """Return (N, I + Q, D)."""
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden, split), split)
        return hidden + self.ffn(self.final_layer_norm(hidden, split), split)


class MuffinPatchEmbedding(nn.Module):
    """Patches of a picture as tokens, the class token first."""

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (N, I, D) of pixels (N, 3, S, S)."""
        patches = self.proj(pixels).flatten(2).transpose(1, 2)  # (N, I - 1, D)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)


class MuffinEncoder(nn.Module):
    """BEiT-3's layers, with a table of positions for picture and queries each."""

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__()
        self.embed_positions = Multiway(
            nn.Embedding(config.image_positions, config.hidden_size),
            nn.Embedding(QUERY_POSITIONS, config.hidden_size),
        )
        self.layers = nn.ModuleList(
            MuffinEncoderLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.layer_norm = _norm(config)

    def forward(self, hidden: Tensor, split: int) -> Tensor:
        """Return (N, I + Q, D)."""
        # Both tables count from their third row.
        rows = [*range(split), *range(hidden.shape[1] - split)]
        positions = torch.tensor(rows, device=hidden.device).unsqueeze(0) + FIRST_POSITION
        hidden = hidden + self.embed_positions(positions, split)
        for layer in self.layers:
            hidden = layer(hidden, split)
        return self.layer_norm(hidden, split)


class Beit3(nn.Module):
    """BEiT-3 without its words."""

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__()
        self.vision_embed = MuffinPatchEmbedding(config)
        self.encoder = MuffinEncoder(config)


class MuffinPreTrainedModel(PreTrainedModel):
    """Settings that all parts have in common."""

    config_class = MuffinConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")  # pyright: ignore[reportAssignmentType]
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["LlamaDecoderLayer", "MuffinEncoderLayer"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    # Removed before training, but they may stand in a checkpoint.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"text_embed\.weight$",
        r"vision_embed\.mask_token$",
    ]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MuffinPatchEmbedding):
            nn.init.normal_(module.cls_token, std=std)
        if isinstance(module, MuffinModel):
            nn.init.normal_(module.query, std=std)


class MuffinVisionModel(MuffinPreTrainedModel):
    """BEiT-3, read out at the queries."""

    config_class = MuffinVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__(config)
        self.beit3 = Beit3(config)
        self.post_init()

    def forward(self, pixel_values: Tensor, query: Tensor) -> Tensor:
        """Return what the queries have become: (N, Q, D).

        Args:
            pixel_values: (N, 3, S, S).
            query: (Q, D), the learned queries.
        """
        side = self.config.image_size
        if tuple(pixel_values.shape[1:]) != (3, side, side):
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)}: this model takes pictures of "
                f"{side} x {side} pixels. Set size in preprocessor_config.json to that side."
            )
        picture = self.beit3.vision_embed(pixel_values)  # (N, I, D)
        hidden = torch.cat([picture, query.expand(len(picture), -1, -1)], dim=1)
        return self.beit3.encoder(hidden, picture.shape[1])[:, -len(query) :]


class MuffinModel(MuffinPreTrainedModel):
    """The model without its output head."""

    def __init__(self, config: MuffinConfig) -> None:
        super().__init__(config)
        vision = vision_settings(config)
        self.vision_tower = MuffinVisionModel(vision)
        self.query = nn.Parameter(torch.zeros(config.num_query or 0, vision.hidden_size))
        self.mm_projector = nn.Linear(vision.hidden_size, config.hidden_size)
        self.language_model = LlamaModel(config)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Return the queries' last states (N, Q, D), and as `pooler_output` the features (N, Q, H)
        that take the places of a picture's tokens.
        """
        states = self.vision_tower(pixel_values, self.query)
        features: Any = self.mm_projector(states)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=features)

    def image_mask(self, input_ids: Tensor) -> Tensor:
        """Return the places (R, T) of pictures' features: the `num_query` behind each start token.

        Raises:
            ValueError: start and end tokens are not as far apart as they must be.
        """
        config = self.config
        apart = config.num_query + 1
        starts = input_ids == config.im_start_token  # (R, T)
        ends = input_ids == config.im_end_token
        expected = functional.pad(starts, (apart, 0))[:, : input_ids.shape[1]]
        if not torch.equal(expected, ends) or starts[:, -apart:].any():
            raise ValueError(
                f"A picture is {config.num_query} tokens between <im_start> and <im_end>, but this "
                "text has another number of them, or only one of the two."
            )
        return torch.stack([starts.roll(offset, 1) for offset in range(1, apart)]).any(0)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return LLaMA's states (R, T, H), of rows in which features stand for the pictures."""
        if inputs_embeds is None:
            inputs_embeds = self.language_model.get_input_embeddings()(input_ids)
        assert inputs_embeds is not None
        if pixel_values is not None:
            if input_ids is None:
                raise ValueError("pictures need input_ids, which say where they stand")
            features: Any = self.get_image_features(pixel_values).pooler_output  # (N, Q, H)
            mask = self.image_mask(input_ids).unsqueeze(-1)  # (R, T, 1)
            if mask.sum() != features.shape[0] * features.shape[1]:
                raise ValueError(
                    f"{len(features)} pictures were given, but the text has "
                    f"{int(mask.sum()) // features.shape[1]}"
                )
            inputs_embeds = inputs_embeds.masked_scatter(mask, features.to(inputs_embeds.dtype))
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


class MuffinForConditionalGeneration(MuffinPreTrainedModel, GenerationMixin):
    """Muffin with its output head, as checkpoints hold it."""

    def __init__(self, config: MuffinConfig) -> None:
        super().__init__(config)
        self.model = MuffinModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return what `MuffinModel.get_image_features` returns."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """Return logits (R, T, V), of the last `logits_to_keep` tokens if that is not 0."""
        body = self.model(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        hidden = body.last_hidden_state
        span = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, span])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=body.past_key_values,
            hidden_states=body.hidden_states,
            attentions=body.attentions,
        )


def resized_positions(table: Tensor, rows: int) -> Tensor:
    """Return a table of image positions for pictures of another side.

    The unused rows and the class token stay; the square of patches is resized, bicubic.

    Args:
        table: (2 + 1 + patches, D).
        rows: that the result has.
    """
    offset = FIRST_POSITION + 1
    old, new = (round((count - offset) ** 0.5) for count in (len(table), rows))
    if len(table) == rows or old * old + offset != len(table):
        return table
    grid = table[offset:].float().unflatten(0, (old, old)).permute(2, 0, 1).unsqueeze(0)
    resized = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    patches = resized[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)  # (new * new, D)
    return torch.cat([table[:offset], patches])


class _ResizedPositions(ConversionOps):
    """Fits a checkpoint's image positions to the side that its configuration names."""

    def __init__(self, *, saving: bool = False) -> None:
        self.saving = saving

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: Any, target_patterns: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the one table of positions, by its name in the model."""
        (given,) = input_dict.values()
        table = given[0] if isinstance(given, list) else given
        rows = vision_settings(kwargs["config"]).image_positions
        return {target_patterns[0]: table if self.saving else resized_positions(table, rows)}

    @property
    def reverse_op(self) -> ConversionOps:
        """Saving keeps the table as it is."""
        return _ResizedPositions(saving=True)


def take_token_ids(model: Any, tokenizer: Any) -> None:
    """Give a model its tokenizer's special tokens; those in the release's files are not its own."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for settings in (model.config, model.generation_config):
            setattr(settings, name, getattr(tokenizer, name))


register_checkpoint_conversion_mapping(
    MuffinConfig.model_type,
    [
        WeightRenaming(r"^model\.embed_tokens", "model.language_model.embed_tokens"),
        WeightRenaming(r"^model\.layers", "model.language_model.layers"),
        WeightRenaming(r"^model\.norm", "model.language_model.norm"),
        WeightConverter(
            "encoder.embed_positions.A.weight",
            "encoder.embed_positions.A.weight",
            operations=[_ResizedPositions()],
        ),
    ],
)
AutoModelForImageTextToText.register(MuffinConfig, MuffinForConditionalGeneration)

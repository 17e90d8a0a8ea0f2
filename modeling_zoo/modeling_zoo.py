"""The zoo model: embeddings, a stack of blocks, a norm and a head, all of them chosen by the config."""

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import CandidateGenerator
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from configuration_zoo import ZooConfig

from .attention_masks import PADDING, build_masks, columns_so_far, layer_mask, mask_names, mask_plan
from .block_attention_residual import DEPTH_READS
from .block_layer import ZooDecoderLayer
from .block_multi_token import MULTI_TOKEN_PREDICTIONS
from .block_per_layer_input import PER_LAYER_EMBEDDINGS, RESIZED
from .block_shared import SHARED_BLOCKS
from .block_topologies import BLOCKS, make_block, make_cross_layer_state
from .cache_upgrade import advance_cache, expect_tokens, pop_int8_request, prepare_cache, upgrade_cache
from .embeddings import Backbone, embeddings_of, read_positions, shape_logits
from .mixer import TokenMixer, asked_part
from .ops_attention_bands import AttentionMask
from .ops_cross_layer import LAST_QUERY
from .platform_backends import attention_backends, fitting_backend, has_views, share_implementations
from .platform_drafts import make_drafts
from .platform_export import refuse_left_out
from .platform_peft import lora_targets
from .platform_pipeline import StagedModel, refuse_uncut, ties_of_layers
from .platform_saving import SavedFolder
from .platform_transformers import enter_among_causal_models, warn_of_what_is_gone
from .platform_vllm import check_backend
from .position_biases import ScoreBiases
from .registry import RECORDED
from .train_added import due_losses, losses_of
from .train_init import InitialWeights
from .train_loss import logits_and_loss
from .train_weight_decay import get_decay_parameter_names, parameter_groups


class ZooPreTrainedModel(StagedModel, SavedFolder, InitialWeights, PreTrainedModel):
    """What transformers needs to know of every zoo model."""

    config_class = ZooConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = sorted({block.__name__ for block in BLOCKS.values()} | {"SharedBlock"})
    _skip_keys_device_placement = ["past_key_values"]
    # Layers that predict further tokens are of the causal language model alone.
    _keys_to_ignore_on_load_unexpected = [r"^mtp\."]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # transformers looks for the experts' decorator in the text of this file; it stands in mlp_experts.py.
    _can_set_experts_implementation_cached_value = True
    _can_record_outputs = {"hidden_states": ZooDecoderLayer, "attentions": TokenMixer} | RECORDED.get("sparse", {})
    lora_targets = lora_targets
    get_decay_parameter_names = get_decay_parameter_names
    parameter_groups = parameter_groups

    def __init__(self, config: ZooConfig, *args: Any, **kwargs: Any):
        # By name: a local folder's copies of the two packages are modules apart, with a config class each.
        if hasattr(config, "match_num_hidden_layers"):
            config.match_num_hidden_layers()
        refuse_left_out(config)
        if attention_backends(config) is not None:
            fitting_backend(config, config._attn_implementation)
        super().__init__(config, *args, **kwargs)

    def train(self, mode: bool = True) -> "ZooPreTrainedModel":
        """As torch's; what would go wrong in training without a word is said when it begins."""
        if mode:
            self.config.warn_of_training()
        return super().train(mode)

    @classmethod
    def maybe_distribute_model(cls, model: nn.Module, distributed_config: Any, mesh_manager: Any) -> nn.Module:
        if distributed_config is not None and (fit_to_ranks := model.config._installed("fit_to_ranks")) is not None:
            fit_to_ranks(model, distributed_config, mesh_manager)
        return super().maybe_distribute_model(model, distributed_config, mesh_manager)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """The backend to use; raises ValueError for one that would silently drop what the config asks for."""
        if attention_backends(self.config) is not None:
            requested_attention = fitting_backend(self.config, requested_attention)
        return super().get_correct_attn_implementation(check_backend(self.config, requested_attention), is_init_check)

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kwargs: Any) -> None:
        if attention_backends(self.config) is not None:
            # Of a kernel of the Hub transformers asks nothing.
            fitting_backend(self.config, attn_implementation)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        if has_views(self.config):
            share_implementations(self)

    def set_experts_implementation(self, *args: Any, **kwargs: Any) -> None:
        super().set_experts_implementation(*args, **kwargs)
        if has_views(self.config):
            share_implementations(self)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        resized = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        for resize in RESIZED.values():
            resize(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
        return resized

    @staticmethod
    def create_masks_for_generate(
        config: ZooConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, AttentionMask]:
        """Masks built ahead of a forward that may be compiled, the same as the forward builds."""
        return build_masks(config, inputs_embeds, attention_mask, past_key_values, position_ids)


class ZooModel(Backbone, ZooPreTrainedModel):
    """Tokens `[B, T]` → hidden states `[B, T, D]`: embed → positions → blocks → norm."""

    def __init__(self, config: ZooConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.build_ends(config)
        self.per_layer_embeddings = asked_part(PER_LAYER_EMBEDDINGS, config)
        self.shared_blocks = asked_part(SHARED_BLOCKS, config)
        self.layers = nn.ModuleList([make_block(config, index) for index in range(config.num_hidden_layers)])
        self.mask_keys = mask_names(config)
        self.score_biases = ScoreBiases(config, self.mask_keys) if self.position_bias is not None else None
        self.mask_plan = mask_plan(config, self.mask_keys)
        self.cross_layer_state = make_cross_layer_state(config)
        self.last_query = asked_part(LAST_QUERY, config)
        self.output_res = asked_part(DEPTH_READS, config)
        self.rope_keys = self.rotary_emb.names
        self.hashes_tokens = any(layer.hashes_tokens(index) for index, layer in enumerate(config.per_layer_config))
        self.gradient_checkpointing = False
        self.post_init()

    def stage_ends(self) -> tuple[bool, bool]:
        """Whether the first and the last layer are here: in a pipeline those of other processes are Identities, and
        what comes in as `inputs_embeds` is the residual stream."""
        starts_here, ends_here = (not isinstance(self.layers[end], nn.Identity) for end in (0, -1))
        if not (starts_here and ends_here):
            if ties_of_layers(self.config):
                refuse_uncut(self.config)
        return starts_here, ends_here

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        per_layer_inputs: torch.FloatTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        inputs_embeds = embeddings_of(self, input_ids, inputs_embeds)
        if past_key_values is not None:
            prepare_cache(past_key_values, self.config)
        attention_mask = columns_so_far(self.config, attention_mask, inputs_embeds, past_key_values)
        call = (self.config, inputs_embeds, attention_mask, past_key_values)
        position_ids, places = read_positions(*call, position_ids, **kwargs)
        # Built before a fresh cache exists: packed sequences are recognised only without one.
        masks = attention_mask if isinstance(attention_mask, dict) else build_masks(*call, places, plan=self.mask_plan)
        if use_cache and past_key_values is None:
            past_key_values = upgrade_cache(DynamicCache(config=self.config), self.config)

        if self.cross_layer_state is not None:
            kwargs = {name: state() for name, state in self.cross_layer_state.items()} | kwargs
        if self.hashes_tokens:
            kwargs["token_ids"] = input_ids
        starts_here, ends_here = self.stage_ends()
        start = self.embed(inputs_embeds, position_ids) if starts_here else self.as_residual(inputs_embeds)
        hidden_states = start
        rows = None
        if self.per_layer_embeddings is not None:
            rows = self.per_layer_embeddings(input_ids, hidden_states, per_layer_inputs)
        rotations = self.rotary_emb.tables_at(inputs_embeds, position_ids)
        biases = {}
        if self.score_biases is not None:
            given = (inputs_embeds, masks.get(PADDING), past_key_values, self.layers)
            biases = self.score_biases(self.position_bias, *given)
        if self.last_query is not None:
            last_from = self.last_query.first_layer(logits_to_keep, masks, past_key_values, kwargs)
        for index, layer in zip(range(self.config.num_hidden_layers), self.layers, strict=False):
            if self.last_query is not None and index == last_from:
                states = (hidden_states, rows, rotations, position_ids, masks, biases)
                hidden_states, rows, rotations, position_ids, masks, biases = self.last_query.of(*states)
            key = self.mask_keys[index]
            parts = self.shared_blocks.context(index, start) if self.shared_blocks is not None else {}
            row = rows[:, :, index] if self.per_layer_embeddings is not None else None
            hidden_states = layer(
                hidden_states,
                row,
                biases.get(key),
                parts.pop("start", None),
                position_embeddings=rotations.get(self.rope_keys[index]),
                attention_mask=layer_mask(masks, key),
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **parts,
                **kwargs,
            )
        if past_key_values is not None:
            advance_cache(past_key_values, inputs_embeds, self.layers)
        if self.output_res is not None:
            finished = kwargs["finished_blocks"].before(self.config.num_hidden_layers, hidden_states)
            hidden_states = self.output_res(finished, hidden_states)
        if ends_here:
            hidden_states = self.finish(hidden_states, inputs_embeds.dtype)
        return MoeModelOutputWithPast(hidden_states, past_key_values)


class ZooForCausalLM(ZooPreTrainedModel, GenerationMixin):
    """Hidden states → logits `[B, T, V]` over the vocabulary, and the loss of predicting the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: ZooConfig):
        super().__init__(config)
        self.model = ZooModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.output_width, config.vocab_size, bias=config.lm_head_bias)
        self.mtp = asked_part(MULTI_TOKEN_PREDICTIONS, config)
        self.added_losses = losses_of(config)
        self.post_init()

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        asked, quantized = pop_int8_request(generation_config, model_kwargs.get("past_key_values"))
        prepared = super()._prepare_cache_for_generation(asked, model_kwargs, *args, **kwargs)
        if model_kwargs.get("past_key_values") is not None:
            cache = upgrade_cache(model_kwargs["past_key_values"], self.config, quantized)
            expect_tokens(cache, generation_config.max_length)
        return prepared

    def _get_candidate_generator(self, generation_config: GenerationConfig, **kwargs: Any) -> CandidateGenerator:
        """transformers' own, but for `generate(use_mtp=True)`: the layers that predict further tokens are here."""
        if getattr(generation_config, "use_mtp", None):
            return make_drafts(self, generation_config=generation_config, **kwargs)
        return super()._get_candidate_generator(generation_config=generation_config, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers' own, but the whole sequence again where its cached keys were rotated differently."""
        # `generate` reads from this signature that embeddings may be given.
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if self.config.rope_changes_between(seen, input_ids.shape[1]):
            past_key_values, kwargs["next_sequence_length"] = None, None
        return super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        record = kwargs.pop("output_router_logits", self.config.output_router_logits)
        chunk_size = kwargs.pop("loss_chunk_size", None if labels is None else self.config.loss_chunk_size)
        asked, added = {"output_router_logits": True} if record else {}, []
        if self.added_losses is not None and labels is not None:
            added = due_losses(self, record)
            for part in added:
                asked |= part.asks
        call = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
        }
        outputs = self.model(
            **call,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep if labels is None else 0,
            **kwargs | asked,
        )
        hidden_states, loss, also = outputs.last_hidden_state, None, {}
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = shape_logits(self.lm_head(hidden_states[:, keep, :]), self.config)
        else:
            logits, loss = logits_and_loss(self, hidden_states, labels, logits_to_keep, chunk_size, kwargs)
        for part in added if self.added_losses is not None else ():
            loss, more = part.add(loss, self, outputs, labels, loss_chunk_size=chunk_size, **call, **kwargs)
            also |= more
        return MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if record else None,
            **also,
        )


warn_of_what_is_gone()
enter_among_causal_models(ZooForCausalLM)


# transformers' generic heads build their body through AutoModel, which asks again for trust: these build it themselves.


class ZooForSequenceClassification(GenericForSequenceClassification, ZooPreTrainedModel):
    """A label per sequence, read at its last token that is no padding."""

    def __init__(self, config: ZooConfig):
        ZooPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = ZooModel(config)
        self.score = nn.Linear(config.output_width, self.num_labels, bias=False)
        self.post_init()


class ZooForTokenClassification(GenericForTokenClassification, ZooPreTrainedModel):
    """A label per token."""

    def __init__(self, config: ZooConfig):
        ZooPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = ZooModel(config)
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.score = nn.Linear(config.output_width, self.num_labels)
        self.post_init()


class ZooForQuestionAnswering(GenericForQuestionAnswering, ZooPreTrainedModel):
    """The first and last token of an answer."""

    def __init__(self, config: ZooConfig):
        ZooPreTrainedModel.__init__(self, config)
        self.model = ZooModel(config)
        self.qa_outputs = nn.Linear(config.output_width, 2)
        self.post_init()

"""Learning: what is added to the loss, how it is computed, and what weights are before the first step."""

from dataclasses import dataclass, fields

from transformers.utils import logging

from .field_kinds import choice, flag, length, non_negative, positive, settings, spreads
from .field_needs import UnreadField
from .fields_checks import for_each_layer
from .vocabulary import INDEXED

logger = logging.get_logger(__name__)

INITIALIZER_TYPES = ("normal", "small", "fan_in", "auto")
RESIDUAL_INITIALIZER_TYPES = ("same", "depth", "layer", "wang", "zero")
# Blocks whose branches end in a norm, which takes out the scale of the matrix before it.
ENDS_IN_NORM = ("output_norm", "sandwich_norm", "scaled_sandwich_norm", "altup")
# Blocks that norm the residual stream itself.
NORMED_BLOCKS = ("post_norm", "pre_norm_residual")
ROUTER_FIELDS = ("output_router_logits", "router_aux_loss_coef", "router_z_loss_coef")


@dataclass(kw_only=True, repr=False)
class TrainingFields:
    """Everything that only training reads. Each coefficient is a factor of a mean over the batch's target tokens."""

    output_router_logits: bool | None = flag(
        None,
        needs="sparse layer",
        meaning="Whether the balance loss and the z-loss of routers are added to the loss. True: always, and router "
        "logits are returned; False: never, whatever the coefficients; None: in training alone, and no logits are "
        "returned.",
        source="transformers",
    )
    router_aux_loss_coef: float | int | None = non_negative(
        needs="sparse layer",
        meaning="Factor on the loss that balances the experts. None: 0.",
        source="Switch Transformer, Fedus et al. 2021, arXiv 2101.03961, §2.2",
    )
    router_z_loss_coef: float | int | None = non_negative(
        needs="sparse layer",
        meaning="Factor on the mean square of log Z of the router. None: 0.",
        source="ST-MoE, Zoph et al. 2022, arXiv 2202.08906, eq. 5",
    )
    output_z_loss_coef: float | int = non_negative(
        0.0,
        meaning="Factor on log² Z of the vocabulary's softmax, which keeps Z near one; 1e-4 in PaLM.",
        source="PaLM, Chowdhery et al. 2022, arXiv 2204.02311, §5",
    )
    loss_chunk_size: int | None = length(
        meaning="Training computes the loss over so many target tokens at a time and returns no logits. None: over "
        "all at once.",
        source="own to zoo",
    )

    initializer: dict | None = settings(
        "What weights are before the first step, beside initializer_range.",
        type=choice(
            INITIALIZER_TYPES,
            "normal",
            meaning="Standard deviation of a new matrix: initializer_range (normal), sqrt(2 / 5D) (small), or 1 / "
            "sqrt(inputs) (fan_in). auto: fan_in, and everything around it by the other fields: residual_type 'depth', "
            "the residual stream at 0.1 or 1, the head at 1 / D.",
            source="Nguyen & Salazar 2019, arXiv 1910.05895 (small); LeCun et al. 1998 and PaLM, arXiv 2204.02311 "
            "(fan_in); own to zoo (auto)",
        ),
        residual_type=choice(
            RESIDUAL_INITIALIZER_TYPES,
            "same",
            meaning="Standard deviation of the matrices that write to the residual stream: as the others (same), "
            "theirs / sqrt(N) with N the writers of the whole stack (depth), theirs / sqrt(2 · (layer + 1)) (layer), "
            "2 / (layers · sqrt(D)) (wang), or zero. Where a norm ends a branch, the same share on its weight.",
            source="Radford et al. 2019 (GPT-2), §2.3 (depth); Zhang et al. 2019, arXiv 1908.11365, and OLMo (layer); "
            "GPT-NeoX, arXiv 2204.06745 (wang); Zhang et al. 2019, arXiv 1901.09321 (zero)",
        ),
        embedding_range=positive(
            meaning="Standard deviation of the token table, if it is another; 1 in PaLM. None: as `type` says.",
            source="PaLM, Chowdhery et al. 2022, arXiv 2204.02311, §5",
        ),
        residual_rms=positive(
            needs="auto start",
            meaning="With type 'auto', the root mean square at which the residual stream starts. None: 0.1, or 1 where "
            "sinusoids join it or it goes through a norm.",
            source="own to zoo",
        ),
        by_name=spreads(
            meaning="Standard deviation of matrices and convolutions in layers by the last part of a module's name, "
            "such as {'o_proj': 0.01}, whatever the other keys say. None: none.",
            source="own to zoo",
        ),
        cutoff=positive(
            meaning="Values beyond this many standard deviations are drawn again; 3 in OLMo 2. None: a plain normal "
            "distribution.",
            source="OLMo 2, arXiv 2501.00656",
        ),
    )

    def resolve_training(self) -> None:
        for field in ("router_aux_loss_coef", "router_z_loss_coef"):
            if getattr(self, field) is None:
                setattr(self, field, 0.0)
        if self.initializer["type"] == "auto":
            self._resolve_start()

    def warn_of_training(self) -> None:
        """Says what would go wrong in training without a word; a converted model learns by the losses of its own."""
        if (refuse := self._installed("refuse_cut_rows")) is not None:
            refuse(self)
        if self.source_config is not None:
            return
        if "sparse" in self.mlp_layer_types and not self.outside_layers()._balances_experts():
            logger.warning_once(
                "num_experts: nothing keeps the experts in balance while this model learns. Set router_aux_loss_coef "
                "(0.01 is usual) or use_score_correction_bias=True, which zoo.training.ExpertBalance moves."
            )
        if INDEXED in self.layer_types and not self.indexer_loss_coef:
            logger.warning_once(
                "indexer_loss_coef: no loss teaches the indexer while this model learns, so that it chooses keys as it "
                "does at the start. Set indexer_loss_coef (1.0 is usual), and indexer.warmup=True while it is new."
            )

    def _resolve_start(self) -> None:
        start = dict(self.initializer)
        if start["residual_type"] == "same":
            start["residual_type"] = "depth"
        if start["residual_rms"] is None:
            is_normed = self.embedding_norm or any(block in NORMED_BLOCKS for block in self.block_types)
            start["residual_rms"] = 1.0 if is_normed or self.position_embedding_type == "sinusoidal" else 0.1
        self.initializer = start

    def _balances_experts(self) -> bool:
        spare = (self.num_experts or 0) > (self.num_experts_per_tok or 0)
        samples = self.scoring_func == "sparsemixer"
        return not spare or samples or self.router_aux_loss_coef > 0 or bool(self.use_score_correction_bias)

    @for_each_layer
    def validate_training(self) -> None:
        for field in ROUTER_FIELDS:
            if getattr(self, field) and "sparse" not in self.mlp_layer_types:
                raise UnreadField(field, getattr(self, field), "a 'sparse' layer in mlp_layer_types")
        if self.output_router_logits is False and self.router_z_loss_coef:
            raise UnreadField("router_z_loss_coef", self.router_z_loss_coef, "output_router_logits left out or True")

    def validate_initializers(self) -> None:
        kind, layers = self.initializer["residual_type"], zip(self.block_types, self.per_layer_config, strict=True)
        bare = [b in ENDS_IN_NORM and not layer.norm_elementwise_affine for b, layer in layers]
        if kind != "same" and self.initializer["type"] != "auto" and any(bare):
            reason = "norms that have a weight (norm_elementwise_affine=True), as they end the branches"
            raise UnreadField("initializer.residual_type", kind, reason)
        if self.initializer["residual_rms"] is not None and self.initializer["type"] != "auto":
            raise UnreadField("initializer.residual_rms", self.initializer["residual_rms"], "initializer.type='auto'")
        default = next(field.default for field in fields(self) if field.name == "initializer_range")
        matrices = self.initializer["type"] == "normal" or self.initializer["embedding_range"] is None
        others = self.position_embedding_type == "learned" or "hyper_connection" in self.block_types
        if self.initializer_range != default and not (matrices or others or self.attention_sinks):
            reason = "initializer.type='normal' or without initializer.embedding_range"
            raise UnreadField("initializer_range", self.initializer_range, reason)

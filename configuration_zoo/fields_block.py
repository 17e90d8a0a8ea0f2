"""What single residual topologies have of their own."""

from dataclasses import dataclass

from .field_kinds import count, flag, positive, settings, size
from .fields_checks import refuse_unless
from .vocabulary import GATED_NORM_BLOCKS, LAUREL_BLOCKS, WHOLE_STACK_BLOCKS

ALTUP, DEPTH = "altup", "attention_residual"
# Key by key: the blocks that read it, what it is where it is left out.
OF_BLOCKS = {
    "gated_norm_rank": (GATED_NORM_BLOCKS, 16),
    "laurel_rank": (LAUREL_BLOCKS, None),
    "altup_num_inputs": ((ALTUP,), 4),
    "altup_active_idx": ((ALTUP,), 0),
    "altup_coef_clip": ((ALTUP,), None),
    "attn_res_block_size": ((DEPTH,), None),
}
CORRECT_SCALE = "block_config.altup_correct_scale"


@dataclass(kw_only=True, repr=False)
class BlockFields:
    """Norms with gates (A.X K2), low-rank residuals (LAuReL) and alternating updates (AltUp; both Gemma 3n), attention
    over earlier blocks (Kimi K3): what `block_type` chooses, in numbers."""

    block_config: dict | None = settings(
        "Details of block types, key by key.",
        gated_norm_rank=size(
            needs="gated norm",
            meaning="Channels of the two maps that make the gate behind a norm, with a block_type that has such gates. "
            "None: 16.",
            source="A.X K2 (SK Telecom 2026)",
        ),
        laurel_rank=size(
            needs="laurel block",
            meaning="Channels of a low-rank map of what attention reads, which joins the residual stream beside it. "
            "None: no such map.",
            source="LAuReL, Menghani et al. 2024, arXiv 2411.07501; Gemma 3n (Google 2025)",
        ),
        altup_num_inputs=size(
            needs="altup",
            meaning="How many residual streams there are. None: 4.",
            source="AltUp, Baykal et al. 2023, arXiv 2301.13310; Gemma 3n (Google 2025)",
        ),
        altup_active_idx=count(
            None,
            needs="altup",
            meaning="The residual stream that layers compute with. None: 0.",
            source="Gemma 3n (Google 2025)",
        ),
        altup_coef_clip=positive(
            needs="altup",
            meaning="The maps that mix streams are clamped to ± this in training. None: they are not.",
            source="Gemma 3n (Google 2025)",
        ),
        altup_correct_scale=flag(
            None,
            needs="altup",
            meaning="Per-layer inputs are gated by the computed residual stream times a weight for each channel. None: "
            "yes.",
            source="Gemma 3n (Google 2025)",
        ),
        attn_res_block_size=size(
            needs="attention residual",
            meaning="How many layers a block has, within which outputs are summed; mixers and MLPs attend over the "
            "sums of all blocks so far. None: an eighth of the layers.",
            source="Block attention residuals, Kimi team 2026, arXiv 2603.15031; Kimi K3 (Moonshot AI 2026)",
        ),
    )

    def resolve_block(self) -> None:
        for key, (blocks, default) in OF_BLOCKS.items():
            if self.block_config[key] is None and {*blocks} & {*self.block_types}:
                setattr(self, f"block_config.{key}", default)
        if DEPTH in self.block_types and self.block_config["attn_res_block_size"] is None:
            setattr(self, "block_config.attn_res_block_size", -(-self.num_hidden_layers // 8))
        if self._scales_altup and self.block_config["altup_correct_scale"] is None:
            setattr(self, CORRECT_SCALE, True)

    @property
    def _scales_altup(self) -> bool:
        return ALTUP in self.block_types and self.hidden_size_per_layer_input is not None

    def validate_block(self) -> None:
        for key, (blocks, _) in OF_BLOCKS.items():
            read = bool({*blocks} & {*self.block_types})
            need = f"block_type={blocks[0]!r}" if len(blocks) == 1 else f"a block_type of {list(blocks)}"
            refuse_unless(self, read, need, (f"block_config.{key}",))
        refuse_unless(self, ALTUP in self.block_types, f"block_type={ALTUP!r}", (CORRECT_SCALE,))
        refuse_unless(self, self._scales_altup, "hidden_size_per_layer_input", (CORRECT_SCALE,))
        streams = [block for block in self.block_types if block in WHOLE_STACK_BLOCKS]
        if streams and set(self.block_types) != {streams[0]}:
            raise ValueError(
                f"block_type: {streams[0]!r} hands more than one stream from layer to layer, so every layer has it."
            )
        if ALTUP in self.block_types:
            self._validate_altup()

    def _validate_altup(self) -> None:
        own = self.block_config
        if own["altup_num_inputs"] < 2:
            raise ValueError(f"block_config.altup_num_inputs={own['altup_num_inputs']} must be at least 2.")
        if own["altup_active_idx"] >= own["altup_num_inputs"]:
            raise ValueError(
                f"block_config.altup_active_idx={own['altup_active_idx']} must be below block_config.altup_num_inputs="
                f"{own['altup_num_inputs']}."
            )

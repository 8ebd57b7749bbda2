"""A diffusers UNet walked block by block, so that a row may reuse its deep part of an earlier step.

DeepCache (Ma et al. 2023, arXiv 2312.00858): what the inner blocks add changes slowly from step to step,
so a shallow row runs the outermost path alone: the first convolution and the last layer of the last up
block, on the features that the row's last full step left there. Owns the walk, which calls the UNet's own
submodules in the order of `UNet2DConditionModel.forward`; it knows no generation and keeps nothing.
"""

from typing import Any

import torch
from torch import Tensor

DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
MID_BLOCKS = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")


class UNetPartialForward:
    """Runs one UNet partially; `fits_partial_forward` says beforehand whether it can."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    @staticmethod
    def fits_partial_forward(unet: Any) -> bool:
        """Whether `unet` is built of the plain blocks of Stable Diffusion, at least two levels of them."""
        return (
            len(unet.down_blocks) > 1
            and all(type(block).__name__ in DOWN_BLOCKS for block in unet.down_blocks)
            and all(type(block).__name__ in UP_BLOCKS for block in unet.up_blocks)
            and type(unet.mid_block).__name__ in MID_BLOCKS
            and unet.up_blocks[-1].upsamplers is None
            and unet.class_embedding is None
            and unet.config.addition_embed_type in (None, "text", "text_time")
            and not unet.config.dual_cross_attention
        )

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        added: dict[str, Tensor] | None,
        num_full_rows: int,
        features: Tensor | None,
        timestep_cond: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The output `(R, C, h, w)`, and the new features `(R - kept, c, h, w)` of the first rows.

        `features` are those kept of the last rows, or nothing if all are new; the deep part runs on the
        first `num_full_rows`, at least as many as are new.
        """
        unet = self._unet
        time_embeds = self._time_embeds(latents, timesteps, prompt_embeds, added, timestep_cond)
        prompt_embeds = unet.process_encoder_hidden_states(
            encoder_hidden_states=prompt_embeds, added_cond_kwargs=added
        )
        hidden = unet.conv_in(2 * latents - 1.0 if unet.config.center_input_sample else latents)
        skip = hidden  # the last layer of the last up block reads the first convolution besides
        num_new = len(latents) - (0 if features is None else len(features))
        new = hidden.new_empty(0)
        if num_full_rows:
            rows = slice(num_full_rows)
            new = self._full(hidden[rows], time_embeds[rows], prompt_embeds[rows])[:num_new]
        parts = [part for part in (new, features) if part is not None and len(part)]
        hidden = _up_layer(unet.up_blocks[-1], -1, torch.cat(parts), skip, time_embeds, prompt_embeds)
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        output: Tensor = unet.conv_out(hidden)
        return output, new

    def _time_embeds(
        self,
        latents: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        added: dict[str, Tensor] | None,
        timestep_cond: Tensor | None,
    ) -> Tensor:
        unet = self._unet
        embeds: Tensor = unet.get_time_embed(sample=latents, timestep=timesteps)
        embeds = unet.time_embedding(embeds, timestep_cond)
        more = unet.get_aug_embed(emb=embeds, encoder_hidden_states=prompt_embeds, added_cond_kwargs=added)
        if more is not None:
            embeds = embeds + more
        return embeds if unet.time_embed_act is None else unet.time_embed_act(embeds)

    def _full(self, hidden: Tensor, time_embeds: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Everything between the first convolution and the last layer: what a shallow row leaves out."""
        unet = self._unet
        skips = [hidden]
        for block in unet.down_blocks:
            hidden, states = _call(block, hidden, time_embeds, prompt_embeds)
            skips += states
        hidden = _call(unet.mid_block, hidden, time_embeds, prompt_embeds)
        for block in unet.up_blocks[:-1]:
            taken = tuple(skips[-len(block.resnets) :])
            del skips[-len(block.resnets) :]
            # The size that the next block's skip has: sides need not be multiples of the whole factor.
            hidden = _call(
                block,
                hidden,
                time_embeds,
                prompt_embeds,
                res_hidden_states_tuple=taken,
                upsample_size=skips[-1].shape[2:],
            )
        last = unet.up_blocks[-1]
        for layer in range(len(last.resnets) - 1):
            hidden = _up_layer(last, layer, hidden, skips.pop(), time_embeds, prompt_embeds)
        return hidden


def _call(block: Any, hidden: Tensor, time_embeds: Tensor, prompt_embeds: Tensor, **more: Any) -> Any:
    if getattr(block, "has_cross_attention", False):
        more["encoder_hidden_states"] = prompt_embeds
    return block(hidden, temb=time_embeds, **more)


def _up_layer(
    block: Any, layer: int, hidden: Tensor, skip: Tensor, time_embeds: Tensor, prompt_embeds: Tensor
) -> Tensor:
    """One layer of an up block: a ResNet, and an attention where the block has them."""
    hidden = block.resnets[layer](torch.cat([hidden, skip], dim=1), time_embeds)
    if getattr(block, "has_cross_attention", False):
        attention = block.attentions[layer]
        hidden = attention(hidden, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
    return hidden

"""DeepCache for a UNet of diffusers (Ma et al. 2023, arXiv 2312.00858): cached rows skip the inner blocks.

The output of the inner blocks changes slowly from step to step, so a cached row runs only the first
convolution and the last layer of the last up block, on the features that its last full step kept. Calls the
UNet's submodules in the order of `UNet2DConditionModel.forward`. It knows nothing of generations and keeps no
state.
"""

from typing import Any

import torch
from torch import Tensor

DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
MID_BLOCKS = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")


class UNetPartialForward:
    """A UNet in which cached rows run only the outermost layers."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    @staticmethod
    def supports(unet: Any) -> bool:
        """Whether `unet` has only the plain blocks of Stable Diffusion, and at least two levels of them."""
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
        """The output `(R, C, h, w)`, and the features `(R - kept, c, h, w)` of the full rows, the first ones.

        `features` are those kept of the last rows, which are cached, or None if all rows are full. The inner
        blocks run on the first `num_full_rows` rows: all full ones, and perhaps cached ones up to a bucket.
        """
        unet = self._unet
        time_embeds = self._time_embeds(latents, timesteps, prompt_embeds, added, timestep_cond)
        prompt_embeds = unet.process_encoder_hidden_states(
            encoder_hidden_states=prompt_embeds, added_cond_kwargs=added
        )
        hidden = unet.conv_in(2 * latents - 1.0 if unet.config.center_input_sample else latents)
        skip = hidden  # the last layer also reads the output of the first convolution
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
        """Run the inner blocks: everything between the first convolution and the last layer."""
        unet = self._unet
        skips = [hidden]
        for block in unet.down_blocks:
            hidden, states = _call(block, hidden, time_embeds, prompt_embeds)
            skips += states
        hidden = _call(unet.mid_block, hidden, time_embeds, prompt_embeds)
        for block in unet.up_blocks[:-1]:
            taken = tuple(skips[-len(block.resnets) :])
            del skips[-len(block.resnets) :]
            # Upsample to the size of the next skip: sides need not be multiples of the total factor.
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
    """Run one layer of an up block: a ResNet block, and attention if the block has it."""
    hidden = block.resnets[layer](torch.cat([hidden, skip], dim=1), time_embeds)
    if getattr(block, "has_cross_attention", False):
        attention = block.attentions[layer]
        hidden = attention(hidden, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
    return hidden

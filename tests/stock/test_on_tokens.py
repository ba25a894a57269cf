"""A block of timm whose attention is a convolution's, class token and all."""

from __future__ import annotations

import torch
from torch import nn

from constructions import attention_from_conv
from constructions.stock.tokens import on_tokens
from tests.support.helpers import filled, integers
from tests.support.libraries import imported


def test_block_of_timm_starts_as_a_block_with_the_convolution() -> None:
    block = imported("timm.models.vision_transformer").Block
    conv = filled(nn.Conv2d(6, 6, 3, padding=1, padding_mode="replicate"))
    torch.manual_seed(0)
    ours, theirs = block(6, num_heads=2), block(6, num_heads=2)
    theirs.load_state_dict(ours.state_dict())
    ours.attn = on_tokens(attention_from_conv(conv), (3, 4), prefix=1)
    theirs.attn = on_tokens(conv, (3, 4), prefix=1)
    tokens = integers(2, 13, 6)
    with torch.no_grad():
        y = ours(tokens)
        assert torch.equal(y, theirs(tokens))
    assert y.shape == tokens.shape

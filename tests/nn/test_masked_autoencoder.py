import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from encyclo.losses.masked_pixels import masked_pixel_loss, patch_targets
from encyclo.nn.masked_autoencoder import MaskedDecoder
from encyclo.nn.vit import ViT, ViTBlocks


def copy_layers(ours: torch.nn.ModuleList, theirs: torch.nn.ModuleList) -> None:
    for block, layer in zip(ours, theirs, strict=True):
        q, k, v, out, fc1, fc2 = (m for m in layer.modules() if isinstance(m, torch.nn.Linear))
        block.norm1.load_state_dict(layer.layernorm_before.state_dict())
        block.norm2.load_state_dict(layer.layernorm_after.state_dict())
        block.attn.qkv.weight.copy_(torch.cat((q.weight, k.weight, v.weight)))
        block.attn.qkv.bias.copy_(torch.cat((q.bias, k.bias, v.bias)))
        block.attn.proj.load_state_dict(out.state_dict())
        block.mlp.wi.load_state_dict(fc1.state_dict())
        block.mlp.wo.load_state_dict(fc2.state_dict())


@torch.no_grad()
def test_encoder_decoder_and_loss_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=16,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            decoder_hidden_size=24,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=96,
            mask_ratio=0.75,
            norm_pix_loss=True,
            layer_norm_eps=1e-6,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).eval()
    for name, parameter in theirs.named_parameters():
        if "position" not in name and "pos_embed" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    encoder = ViT.Config(
        image_size=16, patch=4, dim=16, sincos_first="column", blocks=ViTBlocks.Config(depth=2, heads=2)
    ).build()
    decoder = MaskedDecoder.Config(dim=24, blocks=ViTBlocks.Config(depth=1, heads=2)).build(
        encoder_dim=16, grid=(4, 4), out_dim=48
    )
    lists = {n: m for n, m in theirs.named_modules() if isinstance(m, torch.nn.ModuleList)}
    copy_layers(encoder.blocks.blocks, next(m for n, m in lists.items() if n.startswith("vit")))
    copy_layers(decoder.blocks.blocks, next(m for n, m in lists.items() if n.startswith("decoder")))
    encoder.cls.copy_(theirs.vit.embeddings.cls_token)
    encoder.patch_embed.proj.load_state_dict(theirs.vit.embeddings.patch_embeddings.projection.state_dict())
    encoder.blocks.norm.load_state_dict(theirs.vit.layernorm.state_dict())
    decoder.mask_token.copy_(theirs.decoder.mask_token)
    decoder.embed.load_state_dict(theirs.decoder.decoder_embed.state_dict())
    decoder.blocks.norm.load_state_dict(theirs.decoder.decoder_norm.state_dict())
    decoder.head.load_state_dict(theirs.decoder.decoder_pred.state_dict())
    theirs.decoder.decoder_pos_embed.copy_(decoder.positions)  # some versions leave both empty
    theirs.vit.embeddings.position_embeddings.copy_(encoder.positions)
    images, noise = torch.rand(3, 3, 16, 16), torch.rand(3, 16)
    expected = theirs(images, noise=noise)
    order = noise.argsort(1)  # transformers keeps the lowest noise
    predicted = decoder(encoder(images, order[:, :4]), order)
    torch.testing.assert_close(predicted, expected.logits, atol=1e-4, rtol=1e-4)
    hidden = torch.zeros(3, 16, dtype=torch.bool).scatter(1, order[:, 4:], True)
    loss = masked_pixel_loss(predicted, patch_targets(images, 4, normalise=True), hidden)
    torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=1e-4)

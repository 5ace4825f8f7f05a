"""Networks of metrics with random weights, on the disk as the published ones are."""

import torch


def write_inception(folder):
    """Both published files of Inception-v3: pytorch-fid's state dict, and a TorchScript module with the same layers.

    Weights are drawn so that activations neither vanish nor explode.
    """
    from unittest import mock

    from cleanfid import inception_pytorch

    torch.manual_seed(0)
    found = {}

    def drawn(*_, **__):
        network = found["network"]
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(module.weight)
        found["state"] = network.state_dict()
        return found["state"]

    build = inception_pytorch._inception_v3

    def remembered(*arguments, **options):
        found["network"] = build(*arguments, **options)
        return found["network"]

    with (
        mock.patch.object(inception_pytorch, "_inception_v3", remembered),
        mock.patch.object(inception_pytorch, "load_state_dict_from_url", drawn),
    ):
        network = inception_pytorch.InceptionV3(resize_input=False).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(found["state"], folder / "pt_inception-2015-12-05-6726825d.pth")

    class Published(torch.nn.Module):
        """What clean-fid takes from NVIDIA's file: `layers`, of images of 299 pixels in [-1, 1]."""

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(*(layer for block in network.blocks for layer in block))

        def forward(self, pixels):
            return self.layers(pixels)

    with torch.no_grad():
        traced = torch.jit.trace(Published().eval(), torch.randn(1, 3, 299, 299))
    torch.jit.save(traced, folder / "inception-2015-12-05.pt")
    return folder


def write_clip(folder, image_size=32):
    """A small CLIPModel with its processor, as transformers saves them."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "gelu"}
    text = {**shape, "vocab_size": len(tokens), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**shape, "image_size": image_size, "patch_size": 8}
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    for parameter in network.parameters():  # larger than CLIP's own, so that captions and images tell
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size, crop = {"shortest_edge": image_size}, {"height": image_size, "width": image_size}
    CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(folder)
    return folder

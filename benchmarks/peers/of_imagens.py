"""MinImagen's and imagen-pytorch's own training steps, and steps of their samplers."""

import torch

from benchmarks import cascades
from benchmarks.peers import as_installed
from benchmarks.workloads import Part

SIZES = (64, 128)  # of the pictures of the two stages
GUIDANCE = 3.0


def prepare(workload, variant):
    """(what runs the workload once, None)."""
    torch.manual_seed(0)
    sizes, words = workload.sizes, variant.split()
    imagen, unet = _made(words[0], sizes, variant)
    dtype = getattr(torch, words[-1])
    if "steps" in sizes:
        return _drawing(words[0], imagen, unet, sizes, dtype), None
    return _training(imagen, unet, sizes, dtype), None


def _made(library, sizes, variant):
    """An `Imagen` and the one of its networks that is measured; a first stage that is not is tiny."""
    unet = cascades.peer_unet(sizes, variant)
    if library == "minimagen":
        made, unets = as_installed.minimagen()
        small = {"dim": 8, "dim_mults": (1,), "layer_attns": False, "layer_cross_attns": False}
        networks = [unets.Unet(**small), unets.Unet(**unet)] if sizes["stage"] else [unets.Unet(**unet)]
        usual = {"text_encoder_name": "t5_small", "dynamic_thresholding_percentile": 0.9}
        kind = made.Imagen
    else:
        package = as_installed.imagen_pytorch()
        networks = [package.Unet(**unet)]
        if sizes["stage"]:
            networks.insert(0, package.NullUnet())
        usual = {"text_embed_dim": sizes["width"], "dynamic_thresholding_percentile": 0.9}
        kind = package.Imagen
    imagen = kind(
        networks, image_sizes=SIZES[: len(networks)], cond_drop_prob=cascades.DROPPED, timesteps=1000, **usual
    )
    return imagen, imagen.unets[sizes["stage"]]


def _states(sizes):
    states = torch.from_numpy(cascades.text_states(sizes))
    return states, torch.ones(states.shape[:2], dtype=torch.bool)


def _training(imagen, unet, sizes, dtype):
    """A step as MinImagen's training loop takes it: its loss, clipping, Adam."""
    side, number = SIZES[sizes["stage"]], sizes["stage"] + 1
    images = torch.from_numpy(cascades.pictures(side, sizes["batch"])).permute(0, 3, 1, 2).contiguous()
    states, masks = _states(sizes)
    parameters = list(unet.parameters())
    optimizer = torch.optim.Adam(parameters, lr=cascades.LEARNING_RATE)
    imagen.train()

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = imagen(images, text_embeds=states, text_masks=masks, unet_number=number)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cascades.CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _drawing(library, imagen, unet, sizes, dtype):
    """Some of its sampler's 1000 steps, each of two calls of the network."""
    states, masks = _states(sizes)
    shape = (sizes["batch"], 3, SIZES[0], SIZES[0])
    scheduler = imagen.noise_schedulers[0]
    imagen.eval()
    if library == "minimagen":
        step, times = imagen._p_sample, scheduler._get_sampling_timesteps(shape[0], device="cpu")
    else:
        times = scheduler.get_sampling_timesteps(shape[0], device="cpu")

        def step(unet, x, t, **settings):
            return imagen.p_sample(unet, x, t[0], t_next=t[1], **settings)[0]

    chosen = times[len(times) // 2 :][: sizes["timed_steps"]]

    @torch.no_grad()
    def run():
        images = torch.randn(shape)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            for t in chosen:
                images = step(
                    unet,
                    images,
                    t,
                    noise_scheduler=scheduler,
                    text_embeds=states,
                    text_mask=masks,
                    cond_scale=GUIDANCE,
                )
        return images

    return Part(run, len(times) / len(chosen))

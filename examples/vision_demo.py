"""A small model that sees: trains a tower on drawings that it makes, and asks it about new ones.

    python examples/vision_demo.py [FOLDER]

The decoder is SmolLM2-135M-Instruct, the demo model, and is not trained. A tower of 0.7 MB learns
to turn a picture of 64 x 64 pixels into four rows that look to the decoder like the words "a red
circle shape". Training takes two to three minutes on two cores, once: the folder then holds a
SmolVLM model, which `batchmill worker --model FOLDER` serves like any other.

The questions are jobs: a broker and a worker run on this machine meanwhile. Needs
`batchmill[worker,media]`.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PilImage
from PIL import ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, SmolVLMConfig, SmolVLMForConditionalGeneration

from batchmill import Client
from batchmill.engine.loading.model_source import model_folder

COLOURS = {
    "red": (220, 20, 20),
    "green": (10, 160, 30),
    "blue": (20, 40, 220),
    "yellow": (240, 220, 20),
    "black": (15, 15, 15),
    "purple": (130, 20, 150),
}
SHAPES = ("circle", "square", "triangle")
SIDE = 64
NUM_STEPS, BATCH_SIZE = 900, 32
QUESTION = "What is in the picture?"
MODEL_NAME = "demo-vision"
#: Tokens of the vocabulary that SmolLM2 does not use in chats, and what they are here.
RENAMED = {
    "<file_sep>": "<image>",
    "<gh_stars>": "<fake_token_around_image>",
    "<issue_start>": "<global-img>",
}
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}The picture shows <image>. {% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def draw(colour: str, shape: str, chooser: random.Random) -> PilImage.Image:
    """Draw a shape somewhere on a light ground."""
    ground = chooser.randrange(215, 256)
    picture = PilImage.new("RGB", (SIDE, SIDE), (ground, ground, ground))
    r = chooser.randrange(15, 27)
    x, y = chooser.randrange(r, SIDE - r + 1), chooser.randrange(r, SIDE - r + 1)
    tint = tuple(min(255, max(0, each + chooser.randrange(-20, 21))) for each in COLOURS[colour])
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tint)
    elif shape == "square":
        s = round(r * 0.85)
        pen.rectangle((x - s, y - s, x + s, y + s), fill=tint)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=tint)
    return picture


def pixels_of(pictures: Sequence[PilImage.Image]) -> Tensor:
    """Return pictures as the tower takes them, [1, num_pictures, 3, side, side]."""
    arrays = np.stack([np.asarray(each, dtype=np.float32) for each in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2)[None] / 127.5 - 1


def make_model(decoder_folder: Path) -> tuple[Any, Any]:
    """Return a SmolVLM model with the decoder's weights and a random tower, and its tokenizer."""
    values = json.loads((decoder_folder / "config.json").read_text())
    ignored = ("architectures", "transformers_version", "dtype", "torch_dtype")
    text = {name: value for name, value in values.items() if name not in ignored}
    tokenizer: Any = AutoTokenizer.from_pretrained(decoder_folder)
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 16,
        },
        text_config={**text, "model_type": "llama"},
        image_token_id=tokenizer.convert_tokens_to_ids("<file_sep>"),
        scale_factor=2,
        tie_word_embeddings=True,
    )
    model: Any = SmolVLMForConditionalGeneration(config).float().eval()
    stored = load_file(decoder_folder / "model.safetensors")
    renamed = {
        f"model.text_model.{name.removeprefix('model.')}": value.float()
        for name, value in stored.items()
        if name.startswith("model.")
    }
    found = model.load_state_dict(renamed, strict=False)
    lacking = [name for name in found.missing_keys if "text_model" in name]
    if found.unexpected_keys or lacking:
        raise SystemExit(f"{decoder_folder} does not hold a Llama model: {lacking[:3]}")
    model.tie_weights()
    with torch.no_grad():  # the marks around a picture say nothing
        for token in ("<gh_stars>", "<issue_start>"):
            embeddings = model.get_input_embeddings().weight
            embeddings[tokenizer.convert_tokens_to_ids(token)] = 0
    return model, tokenizer


def tower_of(model: Any) -> dict[str, Tensor]:
    """Return the weights that are trained, by name."""
    return {
        name: weight
        for name, weight in model.named_parameters()
        if "vision_model" in name or "connector" in name
    }


def train(model: Any, tokenizer: Any) -> None:
    """Teach the tower to make the embeddings of the words that name a drawing."""
    chooser = random.Random(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # its operations are too small to share

    def word(text: str) -> int:
        (token_id,) = tokenizer.encode(f" {text}", add_special_tokens=False)
        return int(token_id)

    embeddings = model.get_input_embeddings().weight.detach()
    scale = embeddings.norm(dim=1).mean() ** 2 / embeddings.shape[1]
    colours = embeddings[[word(each) for each in COLOURS]]
    shapes = embeddings[[word(each) for each in SHAPES]]
    first, last = embeddings[word("a")], embeddings[word("shape")]
    model.requires_grad_(False)
    weights = list(tower_of(model).values())
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=NUM_STEPS)
    started = time.monotonic()
    for step in range(NUM_STEPS):
        c = torch.tensor([chooser.randrange(len(COLOURS)) for _ in range(BATCH_SIZE)])
        s = torch.tensor([chooser.randrange(len(SHAPES)) for _ in range(BATCH_SIZE)])
        names = zip(c.tolist(), s.tolist(), strict=True)
        pictures = [draw(list(COLOURS)[i], SHAPES[j], chooser) for i, j in names]
        pixels = pixels_of(pictures)
        rows = model.get_image_features(pixel_values=pixels[0][:, None]).pooler_output
        rows = torch.stack([each.reshape(4, -1) for each in rows])
        ends = (first.expand(BATCH_SIZE, -1), last.expand(BATCH_SIZE, -1))
        target = torch.stack([ends[0], colours[c], shapes[s], ends[1]], dim=1)
        loss = F.mse_loss(rows, target) / scale
        loss += F.cross_entropy(-(torch.cdist(rows[:, 1], colours) ** 2), c)
        loss += F.cross_entropy(-(torch.cdist(rows[:, 2], shapes) ** 2), s)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == NUM_STEPS - 1:
            rights = [
                (torch.cdist(rows[:, place], words).argmin(1) == truth).float().mean().item()
                for place, words, truth in ((1, colours, c), (2, shapes, s))
            ]
            print(
                f"step {step}: loss {loss.item():.3f}, right: {rights[0]:.0%} of the colours, "
                f"{rights[1]:.0%} of the shapes, {time.monotonic() - started:.0f} s",
                flush=True,
            )


def save(model: Any, decoder_folder: Path, folder: Path) -> None:
    """Write a model folder; its tower has 16 bits per weight."""
    folder.mkdir(parents=True, exist_ok=True)
    tower = {name: weight.detach().half() for name, weight in tower_of(model).items()}
    save_file(tower, folder / "tower.safetensors")
    state = {
        name: weight.contiguous()
        for name, weight in {**model.state_dict(), **tower}.items()
        if name != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tower.safetensors").replace(folder / "trained_tower.bin")
    model.config.architectures = ["SmolVLMForConditionalGeneration"]
    model.config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (decoder_folder / name).is_file():
            text = (decoder_folder / name).read_text()
            for old, new in RENAMED.items():
                text = text.replace(json.dumps(old), json.dumps(new))
            (folder / name).write_text(text)
    if (decoder_folder / "generation_config.json").is_file():
        shutil.copy(decoder_folder / "generation_config.json", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {
        "image_processor_type": "SmolVLMImageProcessor",
        "size": {"longest_edge": SIDE},
        "max_image_size": {"longest_edge": SIDE},
        "do_image_splitting": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


@contextmanager
def running_worker(folder: Path) -> Iterator[str]:
    """Run a broker and a worker with the model, and yield the broker's URL."""
    with tempfile.TemporaryDirectory(prefix="batchmill-") as state:
        command = [
            *(sys.executable, "-m", "batchmill.worker.cli", "up", "--json"),
            *("--no-flower", "--no-gateway", "--state-dir", state),
            *("--model", str(folder), "--served-model-name", MODEL_NAME),
            *("--max-model-len", "256", "--kv-cache-bytes", str(64 << 20)),
        ]
        environment = {**os.environ, "BATCHMILL_RUNTIME_DIR": state}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "broker_url" in (facts := json.loads(line)):
                    yield facts["broker_url"]
                    break
        finally:
            process.terminate()
            process.communicate()


def answers(client: Client, pictures: Sequence[PilImage.Image], question: str) -> list[str]:
    """Ask one question about each picture; each is a job, and the worker computes them together."""
    jobs = []
    for picture in pictures:
        content = io.BytesIO()
        picture.save(content, "PNG")
        parts = [{"type": "image", "image": content.getvalue()}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": parts}]
        jobs.append(
            client.submit(model=MODEL_NAME, messages=messages, max_tokens=16, temperature=0.0)
        )
    return [job.result(timeout_s=600).text for job in jobs]


def main() -> None:
    """Train the model if its folder does not exist, and show what it sees."""
    default = Path.home() / ".cache" / "batchmill" / "demo-vision"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    if not (folder / "preprocessor_config.json").is_file():
        print(f"training the tower, two to three minutes, once: {folder}", flush=True)
        decoder_folder = model_folder("demo")
        model, tokenizer = make_model(decoder_folder)
        train(model, tokenizer)
        save(model, decoder_folder, folder)
    print(
        f"{folder} holds the model; its tower has "
        f"{(folder / 'trained_tower.bin').stat().st_size / 1e6:.2f} MB"
    )
    chooser = random.Random(1)
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    pictures = [draw(colour, shape, chooser) for colour, shape in names]
    print("starting a broker and a worker, half a minute", flush=True)
    with running_worker(folder) as url, Client(url) as client:
        texts = answers(client, pictures, QUESTION)
    num_right = 0
    for name, text in zip(names, texts, strict=True):
        is_right = all(word in text.lower() for word in name)
        num_right += is_right
        print(f"{'right' if is_right else 'wrong'}: {' '.join(name)}: {text}")
    print(f"{num_right} of {len(names)} answers name the colour and the shape")


if __name__ == "__main__":
    main()

"""train.py: a small GPT-2 that predicts the next character of Python code."""

import argparse
import inspect
import json
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import alignkit

text = inspect.getsource(argparse) + inspect.getsource(json)
codes = torch.tensor([min(ord(c), 127) for c in text])
train, held_out = codes[:-8192], codes[-8192:]


def net():
    """The architecture, and an example of its input."""
    config = GPT2Config(
        vocab_size=128,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).eval(), {"input_ids": held_out[:64][None]}


def testing():
    """Text that no network was trained on, and the loss of the model."""
    pieces = held_out.reshape(-1, 64)
    batch = {"input_ids": pieces, "labels": pieces}
    return alignkit.Task(net()[0], [batch], "model")


def training():
    """Some of the text that both networks learned from."""
    pieces = train[: 512 * 64].reshape(-1, 64)
    batch = {"input_ids": pieces, "labels": pieces}
    return alignkit.Task(net()[0], [batch], "model")


def main(seed, steps=400):
    torch.manual_seed(seed)
    model = net()[0].train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        starts = torch.randint(len(train) - 64, (16, 1))
        pieces = train[starts + torch.arange(64)]
        loss = model(input_ids=pieces, labels=pieces).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(f"seed-{seed}")


if __name__ == "__main__":
    main(int(sys.argv[1]))

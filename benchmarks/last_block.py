"""What skipping the clean stream's outputs in the last block saves: one training pass, both ways.

Run: `python -m benchmarks.last_block [--layers 4] [--hidden 192] [--length 128] [--rows 16]`.
Prints the ratio of seconds, without skipping over with skipping, paired pass by pass.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.config import ModelConfig
from esolm.model.initialize import initialize
from esolm.model.inputs import NetworkInput
from esolm.model.network import Block, Network
from esolm.pipeline.parallel.single import single_process


def build(args: argparse.Namespace, device: str) -> Network:
    config = ModelConfig(
        vocab_size=512, mask_id=0, hidden_size=args.hidden, num_layers=args.layers,
        num_heads=args.hidden // 32, ffn_hidden_size=4 * args.hidden,
    )  # fmt: skip
    network = Network(config, single_process())
    initialize(network.named_parameters(), config, seed=0, tensor_rank=0, tensor_size=1)
    return network.to(device)


def two_stream_input(args: argparse.Namespace, device: str) -> NetworkInput:
    order = torch.rand(args.rows, args.length).argsort(1).repeat(1, 2)
    tokens = torch.randint(512, order.shape)
    zeros = torch.zeros(args.rows, dtype=torch.int64)
    pattern = AttentionPattern.TWO_STREAM
    return NetworkInput(tokens.to(device), order.to(device), pattern, zeros.to(device), zeros)


def skipping(network: Network, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    hidden: Tensor = network(inputs)
    return hidden


def not_skipping(network: Network, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The last block computes both streams; the head then drops one."""
    last = network.blocks[-1]
    assert isinstance(last, Block)
    last.last = False
    flow = network.embedding(inputs)
    for block in network.blocks:
        flow = block(flow)
    last.last = True
    hidden, positions, *rest = flow
    hidden, positions = last._queries(hidden, positions, positions.shape[1] // 2)
    output: Tensor = network.head((hidden, positions, *rest))
    return output


def seconds(run: Callable[..., Tensor], network: Network, inputs: NetworkInput) -> float:
    network.zero_grad()
    rows = inputs.rows()
    if rows.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    output = run(network, (inputs.tokens, inputs.positions, rows))
    torch.autograd.backward(output.square().sum())
    if rows.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--passes", type=int, default=15)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, inputs = build(args, device), two_stream_input(args, device)
    for run in (not_skipping, skipping):
        seconds(run, network, inputs)
    pairs = [
        (seconds(not_skipping, network, inputs), seconds(skipping, network, inputs))
        for _ in range(args.passes)
    ]
    ratio = statistics.median(without / with_ for without, with_ in pairs)
    print(
        f"{args.layers} layers x {args.hidden}, {args.rows} rows of {args.length}, {device}: "
        f"{statistics.median(p[0] for p in pairs):.4f} s without skipping, "
        f"{statistics.median(p[1] for p in pairs):.4f} s with; ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()

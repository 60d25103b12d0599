"""Checkpoints larger than memory, interrupted runs and several processes, each through the command line.

    python benchmarks/streaming.py PART [FOLDER]

``size``   a synthetic Llama of 12 GiB in bfloat16 shards, W4 in groups of 128 without data: seconds, peak resident
           memory, and the disk's own speed on the same files;
``blocks`` four decoder blocks of 7B shape with GPTQ on 16 windows of 512 tokens: peak resident memory;
``kills``  ``kill -9`` at 30 random moments of a GPTQ run on a small model, each run resumed: are the bytes the same?
``ranks``  the same run by ``torchrun`` with 2 processes.

Each part writes its own results. FOLDER holds the checkpoints (and is left without them).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _results import markdown_table, write
from safetensors.torch import save_file

LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}


def checkpoint(folder: Path, layers: int, shape: dict[str, int], dtype: torch.dtype = torch.bfloat16) -> Path:
    """A Llama with random weights, one shard a block; the config is transformers' own."""
    import transformers

    folder.mkdir(parents=True)
    config = transformers.LlamaConfig(num_hidden_layers=layers, **shape, architectures=["LlamaForCausalLM"])
    config.dtype = dtype
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = {name: tensor.shape for name, tensor in transformers.LlamaForCausalLM(config).state_dict().items()}
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02
    weight_map, shards = {}, {}
    for name in state:
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shards.setdefault(part, []).append(name)
    for part, names in shards.items():
        file = f"model-{part}.safetensors"
        save_file({name: values(noise, state[name], i).to(dtype) for i, name in enumerate(names)}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def values(noise: torch.Tensor, shape: torch.Size, seed: int) -> torch.Tensor:
    """Random numbers, the same few millions again and again; ones for norms."""
    if len(shape) == 1:
        return torch.ones(shape)
    count = shape.numel()
    repeated = noise.roll(seed * 7919).repeat(-(-count // noise.numel()))
    return repeated[:count].reshape(shape)


def run(arguments: list[str], threads: int = 2, launcher: tuple[str, ...] = ()) -> tuple[float, int, str]:
    """Seconds, peak resident bytes and stdout of ``fewbit`` with these arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "fewbit", *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"fewbit {' '.join(arguments)} ended with {status}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, out


def read_speed(files: list[Path]) -> float:
    """Bytes a second of reading files that are not in the page cache, into memory that is used again."""
    buffer = memoryview(bytearray(64 * 2**20))
    total, start = 0, time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := opened.readinto(buffer):
                total += count
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return total / (time.perf_counter() - start)


def size(folder: Path) -> None:
    source = checkpoint(folder / "llama-12GiB", 31, LLAMA_7B)
    files = sorted(source.glob("*.safetensors"))
    nbytes = sum(file.stat().st_size for file in files)
    os.sync()
    arguments = ["quantize", str(source), "-r", "W4A16-g128", "--algorithm", "rtn", "--calibrator", "minmax"]
    rows = []
    for turn in range(2):
        disk = read_speed(files)
        seconds, peak, _ = run([*arguments, "-o", str(folder / "out"), "--overwrite"])
        rows.append({"turn": turn, "disk MB/s": disk / 1e6, "MB/s": nbytes / seconds / 1e6, "s": seconds, "peak": peak})
    shutil.rmtree(source)
    shutil.rmtree(folder / "out")
    told = [[str(r["turn"]), *(f"{r[key]:.0f}" for key in ("disk MB/s", "MB/s", "s")), gib(r["peak"])] for r in rows]
    table = markdown_table(["run", "the disk alone, MB/s", "quantize, MB/s of input", "s", "peak, GiB"], told)
    text = (
        f"# A Llama of {nbytes / 2**30:.2f} GiB in bfloat16 shards, W4A16-g128 min-max, two threads\n\n"
        f"From a cold page cache, starting Python and writing the output included.\n\n{table}"
    )
    write("streaming_size", text, {"bytes": nbytes, "runs": rows})


def blocks(folder: Path) -> None:
    source = checkpoint(folder / "llama-4-blocks", 4, LLAMA_7B)
    data = tokens(folder, 16, 512, 32000)
    arguments = ["quantize", str(source), "-r", "W4A16-g128", "--algorithm", "gptq", "--data", str(data)]
    seconds, peak, _ = run([*arguments, "--memory", "1GiB", "-o", str(folder / "out"), "--overwrite"])
    shutil.rmtree(source)
    shutil.rmtree(folder / "out")
    text = (
        "# Four decoder blocks of 7B shape (4096/11008), GPTQ W4A16-g128 on 16 windows of 512 tokens, --memory 1GiB\n\n"
        + markdown_table(["", "s", "peak, GiB"], [["fewbit quantize, two threads", f"{seconds:.0f}", gib(peak)]])
    )
    write("streaming_blocks", text, {"seconds": seconds, "peak": peak})


def kills(folder: Path, count: int = 30) -> None:
    source = checkpoint(folder / "small", 4, SMALL, torch.float32)
    command = small_command(folder, source)
    started = time.perf_counter()
    run([*command, "-o", str(folder / "whole")], threads=1)
    length = time.perf_counter() - started
    chance, rows = random.Random(0), []
    for number in range(count):
        out, killed, moments = folder / f"out{number}", 0, []
        while not out.is_dir() or out.with_name(f"{out.name}.partial").exists():
            moment = chance.uniform(0.2, 1.0) * length if killed < 1 else None
            killed += kill_at([*command, "-o", str(out)], moment)
            moments += [] if moment is None else [round(moment, 2)]
        rows.append({"moments": moments, "killed": killed, "same": content(out) == content(folder / "whole")})
        shutil.rmtree(out)
    shutil.rmtree(source)
    killed, same = sum(row["killed"] for row in rows), sum(row["same"] for row in rows)
    text = (
        f"# kill -9 at {count} random moments of a GPTQ run ({length:.0f} s), each resumed\n\n"
        f"{killed} runs were killed before they ended; {same} of {count} ended with the bytes of the run that was not."
    )
    write("streaming_kills", text, {"runs": rows, "seconds": length})


def ranks(folder: Path) -> None:
    source = checkpoint(folder / "small", 4, SMALL, torch.float32)
    command, launcher = small_command(folder, source), ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    rows = []
    for name, more in (("with data (GPTQ)", command), ("without data", ["quantize", str(source), "-r", "W4A16-g64"])):
        run([*more, "-o", str(folder / "one")], threads=2)
        run([*more, "-o", str(folder / "two")], threads=1, launcher=launcher)
        same = content(folder / "one") == content(folder / "two")
        rows.append([name, "yes" if same else "NO"])
        shutil.rmtree(folder / "one")
        shutil.rmtree(folder / "two")
    shutil.rmtree(source)
    table = markdown_table(["a small Llama, W4A16-g64", "the same bytes"], rows, left=2)
    write(
        "streaming_ranks",
        f"# One process with 2 threads, and torchrun with 2 processes of 1\n\n{table}",
        {"rows": rows},
    )


def small_command(folder: Path, source: Path) -> list[str]:
    data = tokens(folder, 16, 64, 512)
    return ["quantize", str(source), "-r", "W4A16-g64", "--algorithm", "gptq", "--data", str(data)]


def tokens(folder: Path, windows: int, length: int, vocabulary: int) -> Path:
    path = folder / "tokens.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({"input_ids": torch.randint(3, vocabulary, (windows, length), generator=generator)}, path)
    return path


def kill_at(arguments: list[str], moment: float | None) -> int:
    """Run fewbit and kill it after so many seconds; 1 if it was still running then."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "fewbit", *arguments], env=environment, stdout=subprocess.DEVNULL)
    try:
        code = process.wait(moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return 1
    if code:
        raise SystemExit(f"fewbit {' '.join(arguments)} ended with {code}")
    return 0


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def gib(count: Any) -> str:
    return f"{count / 2**30:.2f}"


PARTS = {"size": size, "blocks": blocks, "kills": kills, "ranks": ranks}


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in PARTS:
        raise SystemExit(__doc__)
    where = Path(sys.argv[2]) if len(sys.argv) == 3 else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        PARTS[sys.argv[1]](Path(folder))


if __name__ == "__main__":
    main()

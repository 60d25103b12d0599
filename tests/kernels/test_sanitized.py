"""Every kernel in a program without Python: under the address and undefined-behaviour sanitizers, and on ARM.

``make sanitize`` runs this file. What is built stays under ``build/``, so that only the first run takes its time.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.native

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ROOT / "tests" / "native"
ARM_COMPILER, ARM_EMULATOR, ARM_LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"


def tool(name: str) -> str:
    """The path of a program, of this environment or of the system."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@cache
def built(name: str, *options: str) -> str:
    """The program, built under build/NAME; skips where a compiler cannot."""
    where = ROOT / "build" / name
    arguments = ["-S", str(CHECKS), "-B", str(where), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    configured = run(tool("cmake"), *arguments, *options)
    if configured.returncode:
        pytest.skip(f"the compiler cannot build {name}: {configured.stderr.strip().splitlines()[-1]}")
    done = run(tool("cmake"), "--build", str(where))
    if "cannot find -lasan" in done.stdout or "cannot find -lubsan" in done.stdout:
        pytest.skip("the compiler has no sanitizers (libasan, libubsan)")
    assert done.returncode == 0, done.stdout[-4000:]
    return str(where / "native_checks")


def sanitized() -> str:
    """One set of each width: the others are the same code with other flags."""
    return built("sanitized", "-DFEWBIT_SANITIZE=ON", "-DFEWBIT_ONLY=amx;avx512vnni;avx2;neon;portable")


def test_every_kernel_runs_clean_under_the_sanitizers() -> None:
    done = run(sanitized())
    assert done.returncode == 0, done.stderr[-4000:]
    assert "ran portable" in done.stderr


def test_the_sanitizers_would_notice_a_byte_too_many() -> None:
    done = run(sanitized(), "overrun")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ARM is emulated on x86 alone")
def test_arm_gives_the_same_bits() -> None:
    emulator = tool(ARM_EMULATOR)
    cross = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_BUILD_TYPE=Release"]
    program = built("aarch64", *cross, f"-DCMAKE_CXX_COMPILER={tool(ARM_COMPILER)}")
    there, here = run(emulator, "-L", ARM_LIBRARIES, program), run(sanitized())
    assert there.returncode == 0, there.stderr
    assert "ran neon" in there.stderr
    assert there.stdout == here.stdout

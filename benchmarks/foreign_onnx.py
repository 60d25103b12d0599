"""ONNX networks that others made, quantized from the command line: do they still do their task?

- rapidocr-onnxruntime's three (text detection, direction, recognition): the text that the whole pipeline reads on
  rendered pages, with one network replaced at a time and with all three. Calibrated on what the networks see while the
  float pipeline reads eight other pages.
- The same pages with a noise of one gray level through the float networks, and the recognition network as ONNX
  Runtime's own quantizer makes it (min-max, per channel), for comparison.
- magika's content-type network: the label of source and documentation files.

    pip install --no-deps --target FOLDER rapidocr-onnxruntime magika       # and what the two import
    python benchmarks/foreign_onnx.py --packages FOLDER

writes ``benchmarks/results/foreign_onnx.*``. Pages are rendered with the fonts of DejaVu (``--fonts``). Quantized files
are kept in ``--folder``, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import _results
import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION, PAGES, LINES = range(8), range(100, 110), 5
FONTS = ("DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSans-Bold.ttf")
TEXTS = (
    "The quick brown fox",
    "jumps over 13 lazy dogs",
    "Invoice No. 2026-1124",
    "Total: 1,299.50 EUR",
    "Neural networks in INT8",
    "quantize, compare, report",
    "Station Road 42",
    "Departure 08:15 gate B7",
    "Hello World",
    "calibration on real data",
    "x86 VNNI and AVX-512",
    "Figure 3: error by layer",
    "Please sign here",
    "Order 77812 shipped",
    "Temperature 21.5 C",
    "Open Monday to Friday",
    "page 12 of 340",
    "Warning: high voltage",
    "Chapter One",
    "Best before 03/2027",
)
NETS = {
    "det": "ch_PP-OCRv4_det_infer.onnx",
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
}
RECIPES = ("W8A8", "W8A16")
KINDS = (".py", ".md", ".json", ".toml", ".cpp", ".h", ".yml", ".txt", ".css", ".html", ".js", ".rst", ".c", ".xml")


def drawn(number: int) -> list[str]:
    """The text of a page, line by line."""
    return [TEXTS[(number * LINES + line * 3) % len(TEXTS)] for line in range(LINES)]


def page(number: int, fonts: Path, noise: int = 0) -> np.ndarray:
    """Five lines of text, ``uint8 [480, 640, 3]``, each value off by up to ``noise``."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (640, 480), tuple(int(v) for v in rng.integers(200, 255, 3)))
    draw = ImageDraw.Draw(image)
    for line in range(LINES):
        font = ImageFont.truetype(str(fonts / FONTS[(number + line) % len(FONTS)]), int(rng.integers(22, 34)))
        at, ink = (int(rng.integers(10, 60)), 20 + 88 * line), tuple(int(v) for v in rng.integers(0, 90, 3))
        draw.text(at, drawn(number)[line], fill=ink, font=font)
    exact = np.array(image)[:, :, ::-1].astype(np.int16)
    return np.clip(exact + rng.integers(-noise, noise, exact.shape, endpoint=True), 0, 255).astype(np.uint8)


def read(pages: range, fonts: Path, noise: int = 0, **paths: Path) -> tuple[list[list[str]], Any]:
    """What the pipeline reads, and the pipeline."""
    from rapidocr_onnxruntime import RapidOCR  # type: ignore[import-not-found]

    ocr = RapidOCR(
        intra_op_num_threads=1,
        inter_op_num_threads=1,
        **{f"{net}_model_path": str(path) for net, path in paths.items()},
    )
    return [[text for _, text, _ in ocr(page(number, fonts, noise))[0] or []] for number in pages], ocr


def seen_by_ocr(folder: Path, fonts: Path) -> None:
    """Write what each network gets while the float pipeline reads pages, as one array of a common width."""
    import rapidocr_onnxruntime.utils.infer_engine as engine  # type: ignore[import-not-found]

    seen: dict[int, list[np.ndarray]] = {}
    plain = engine.OrtInferSession.__call__

    def call(self: Any, x: np.ndarray, *more: Any, **named: Any) -> Any:
        seen.setdefault(id(self), []).append(np.array(x, np.float32))
        return plain(self, x, *more, **named)

    engine.OrtInferSession.__call__ = call
    try:
        _, ocr = read(CALIBRATION, fonts)
    finally:
        engine.OrtInferSession.__call__ = plain
    sessions = {"det": ocr.text_det.infer, "cls": ocr.text_cls.infer, "rec": ocr.text_rec.session}
    for net, session in sessions.items():
        arrays = seen[id(session)]
        wide = max(x.shape[3] for x in arrays)
        padded = [np.pad(x, ((0, 0), (0, 0), (0, 0), (0, wide - x.shape[3]))) for x in arrays]
        np.save(folder / f"{net}.npy", np.concatenate(padded))


def quantize(source: Path, recipe: str, data: Path, out: Path, batch: int, more: list[str]) -> float:
    """``fewbit quantize`` as a user types it; the seconds it took, nan where the file was there."""
    if out.exists():
        return float("nan")
    command = ["-m", "fewbit", "quantize", source, "--recipe", recipe, "--data", data, "-o", out, "--batch-size", batch]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command), *more], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name}: {done.stderr}")
    return time.perf_counter() - start


def ocr_rows(folder: Path, packages: Path, fonts: Path, more: list[str]) -> list[dict[str, Any]]:
    if not (folder / "rec.npy").exists():
        seen_by_ocr(folder, fonts)
    models, took = packages / "rapidocr_onnxruntime" / "models", dict[Path, float]()
    cases: list[tuple[str, dict[str, Path], int]] = []
    for recipe in RECIPES:
        quantized = {net: folder / f"{net}-{recipe}.onnx" for net in NETS}
        for net, out in quantized.items():
            batch = 1 if net == "det" else 8
            took[out] = quantize(models / NETS[net], recipe, folder / f"{net}.npy", out, batch, more)
        cases += [(f"rapidocr {net}, {recipe}", {net: quantized[net]}, 0) for net in NETS]
        cases.append((f"rapidocr all three, {recipe}", quantized, 0))
    cases.append(("rec by ONNX Runtime's quantizer", {"rec": by_onnxruntime(models / NETS["rec"], folder)}, 0))
    cases.append(("float, one gray level of noise", {}, 1))
    floats, _ = read(PAGES, fonts)
    rows = [ocr_row("rapidocr in float", floats, floats)]
    for name, paths, noise in cases:
        rows.append(ocr_row(name, floats, read(PAGES, fonts, noise, **paths)[0]))
        rows[-1]["bytes_before"] = sum((models / NETS[net]).stat().st_size for net in paths)
        rows[-1]["bytes_after"] = sum(path.stat().st_size for path in paths.values())
        rows[-1]["seconds"] = sum(took.get(path, float("nan")) for path in paths.values())
    return rows


def ocr_row(name: str, floats: list[list[str]], found: list[list[str]]) -> dict[str, Any]:
    """What was read beside what the float networks read and what was drawn."""
    pairs = [(a, b) for one, two in zip(floats, found) for a, b in zip(one, two)]
    return {
        "network": name,
        "items": sum(len(lines) for lines in floats),
        "equal": sum(a == b for a, b in pairs),
        "equal_but_spaces": sum(a.replace(" ", "") == b.replace(" ", "") for a, b in pairs),
        "right": sum(a == b for number, lines in zip(PAGES, found) for a, b in zip(drawn(number), lines)),
        "bytes_before": 0,
        "bytes_after": 0,
        "differences": [pair for pair in pairs if pair[0] != pair[1]],
    }


def by_onnxruntime(source: Path, folder: Path) -> Path:
    """The recognition network as ``onnxruntime.quantization`` makes it; its own file is of an opset too old for it."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out, prepared = folder / "rec.ort.onnx", folder / "rec.prepared.onnx"
    if out.exists():
        return out

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter(np.split(np.load(folder / "rec.npy"), 5))

        def get_next(self) -> dict[str, np.ndarray] | None:
            item = next(self.items, None)
            return None if item is None else {"x": item}

    onnx.save(onnx.version_converter.convert_version(onnx.load(str(source)), 13), str(prepared))
    quant_pre_process(str(prepared), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


def some_files() -> list[Path]:
    """Files of this repository and of Python's library, an even choice of each kind."""
    places = (ROOT, Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platlib")))
    found: list[Path] = []
    for kind in KINDS:
        files = (path for place in places for path in sorted(place.rglob(f"*{kind}")) if path.stat().st_size > 512)
        found += [path for path, _ in zip(files, range(24))]
    return found


def magika_rows(folder: Path, packages: Path, more: list[str]) -> list[dict[str, Any]]:
    from magika import Magika  # type: ignore[import-not-found]

    model = Magika()
    source = next((packages / "magika" / "models").rglob("model.onnx"))
    files = some_files()
    features: list[np.ndarray] = []
    plain = model._onnx_session

    class Spy:
        def run(self, names: Any, feeds: dict[str, np.ndarray]) -> Any:
            features.extend(feeds.values())
            return plain.run(names, feeds)

    model._onnx_session = Spy()
    model.identify_paths(files[::4])
    model._onnx_session = plain
    np.save(folder / "magika.npy", np.concatenate(features))
    rest = [path for index, path in enumerate(files) if index % 4]
    before = [result.output.label for result in model.identify_paths(rest)]
    return [_magika_row(recipe, model, source, folder, rest, before, more) for recipe in RECIPES]


def _magika_row(
    recipe: str, model: Any, source: Path, folder: Path, files: list[Path], before: list[Any], more: list[str]
) -> dict[str, Any]:
    import onnxruntime

    out = folder / f"magika-{recipe}.onnx"
    took = quantize(source, recipe, folder / "magika.npy", out, 16, more)
    model._onnx_session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    pairs = list(zip(before, [result.output.label for result in model.identify_paths(files)]))
    equal = sum(a == b for a, b in pairs)
    return {
        "network": f"magika, {recipe}",
        "items": len(pairs),
        "equal": equal,
        "equal_but_spaces": equal,
        "bytes_before": source.stat().st_size,
        "bytes_after": out.stat().st_size,
        "seconds": took,
        "differences": [(str(a), str(b)) for a, b in pairs if a != b],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="where rapidocr_onnxruntime and magika lie")
    parser.add_argument("--folder", type=Path, default=Path("foreign-models"))
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts/truetype/dejavu"))
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more for fewbit quantize")
    options = parser.parse_args()
    sys.path.append(str(options.packages))
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = magika_rows(options.folder, options.packages, options.options)
    rows += ocr_rows(options.folder, options.packages, options.fonts, options.options)
    cells = [
        (
            row["network"],
            f"{row['equal']} of {row['items']}",
            f"{row['equal_but_spaces']}",
            str(row.get("right", "–")),
            *(f"{row[key] / 1e6:.2f}" if row[key] else "–" for key in ("bytes_before", "bytes_after")),
        )
        for row in rows
    ]
    different = [f"- {row['network']}: {a!r} became {b!r}" for row in rows[:-2] for a, b in row["differences"]]
    columns = ("network", "same output", "same but for spaces", "as drawn", "MB before", "MB after")
    used = " ".join(options.options) or "the defaults"
    text = f"""# ONNX networks that others made, quantized from the command line

Output: lines of text that the whole OCR pipeline reads on {len(PAGES)} rendered pages, with one or all of its networks
quantized; labels of files. `fewbit quantize` with {used}. As drawn: lines read as they were written. The last row is no
quantizer: the float networks on the same pages with each value off by at most one gray level of 255. Made by
`python benchmarks/foreign_onnx.py`.

{_results.markdown_table(columns, cells)}

{chr(10).join(different)}"""
    _results.write("foreign_onnx", text, {"rows": rows})


if __name__ == "__main__":
    main()

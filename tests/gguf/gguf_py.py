#!/usr/bin/env python3
"""What llama.cpp's own package says about GGUF files: pip install gguf (0.19.0 made what lies here).

    gguf_py.py make           writes every_type.gguf, packed.gguf, blocks.gguf and listing.json of the files beside this script
    gguf_py.py list FILE...   prints the listing of any files; $PEFT_GGUF_LISTING gives it to test_gguf
"""
import json
import pathlib
import sys

import gguf
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
NAMES = dict(UINT8="u8", INT8="i8", UINT16="u16", INT16="i16", UINT32="u32", INT32="i32", FLOAT32="f32", BOOL="bool",
             STRING="text", ARRAY="array", UINT64="u64", INT64="i64", FLOAT64="f64")
NESTED = [[1, 2], [3]]


def plain(value):
    """As JSON has it; a float keeps all its bits."""
    return [plain(v) for v in value] if isinstance(value, list) else value.item() if hasattr(value, "item") else value


def listing(path):
    reader = gguf.GGUFReader(path)
    values, tensors = [], []
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        # The package flattens nested arrays: what was written stands for what it reads.
        value = NESTED if key == "test.nested" else field.contents()
        values.append([key, [NAMES[t.name] for t in field.types], plain(value)])
    for tensor in reader.tensors:
        tensors.append([tensor.name, tensor.tensor_type.name, [int(d) for d in reversed(tensor.shape)],
                        int(tensor.data_offset - reader.data_offset), int(tensor.n_bytes)])
    version = int(reader.fields["GGUF.version"].parts[0][0])
    return dict(version=version, alignment=int(reader.alignment), data_offset=int(reader.data_offset), values=values,
                tensors=tensors)


def make_every_type(path):
    writer = gguf.GGUFWriter(path, "test")
    writer.add_custom_alignment(64)
    types = gguf.GGUFValueType
    numbers = dict(UINT8=255, INT8=-128, UINT16=65535, INT16=-32768, UINT32=2**32 - 1, INT32=-2**31, FLOAT32=0.1,
                   UINT64=2**64 - 1, INT64=-2**63, FLOAT64=0.1, BOOL=True)
    for name, number in numbers.items():
        writer.add_key_value(f"test.{NAMES[name]}", number, types[name])
        writer.add_key_value(f"test.list.{NAMES[name]}", [number, 0, 1], types.ARRAY, sub_type=types[name])
    writer.add_string("test.text", "é模😀\n")
    writer.add_array("test.texts", ["a", "", "模"])
    writer.add_array("test.nested", NESTED)
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":  # no file holds it, and the package has another size for it than ggml
            continue
        data = np.arange(6 * size).astype(np.uint8).reshape(2, 3, size)  # rows of one block, as bytes
        writer.add_tensor(f"a.{kind.name}", data, raw_dtype=kind)
    writer.add_tensor("one", np.ones((1,), np.float32))
    writer.add_tensor("four", np.arange(24, dtype=np.float32).reshape(2, 3, 1, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PACKED = ("Q8_0", "Q4_0", "MXFP4")
UNPACKED = dict(Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[208], MXFP4=[])


def write(path, tensors):
    """Arrays by name: of a quantised type as bytes, with the type."""
    writer = gguf.GGUFWriter(path, "test")
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_packed(path):
    """Numbers, and how the package packs them."""
    rng = np.random.default_rng(7)
    values = rng.standard_normal((13, 96)).astype(np.float32)
    values[0, :32] = 0
    values[1] *= 1e-6  # the scale is subnormal in F16
    values[2] *= 1e5
    values[3, :32] = (np.arange(32) - 16) * 0.5  # codes half way between two
    values[3, 0] = 127
    values[4, 32:64:2] = -0.0
    values[5] *= np.float32(2) ** rng.integers(-20, 10, 96).astype(np.float32)
    values[6, 3] = np.nextafter(np.float32(2), np.float32(0))  # just below a power of two
    values[7, :32] = np.tile(np.array([7, -7, 8, -8], np.float32), 8)  # two are as far from zero
    values[8, :64] = np.tile(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -6], np.float32), 8)  # half way in MXFP4
    tensors = dict(values=(values, None))
    for name in PACKED:
        kind = gguf.GGMLQuantizationType[name]
        tensors[name] = gguf.quants.quantize(values, kind), kind
    write(path, tensors)


def make_blocks(path):
    """Blocks of random bytes of each type, and what the package says they are worth."""
    rng = np.random.default_rng(11)
    tensors = {}
    for name, scales in UNPACKED.items():
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (3 * 7, size)).astype(np.uint8)
        for at in scales:  # finite, of both signs; and the corners of F16
            halves = (rng.standard_normal(21) * 2.0 ** rng.integers(-14, 3, 21)).astype(np.float16)
            halves[:4] = [0, -0.0, 6e-8, 65504 if elements == 32 else 1]
            blocks[:, at:at + 2] = halves.view(np.uint8).reshape(21, 2)
        if name == "MXFP4":
            blocks[:, 0] = rng.integers(100, 140, 21)
            blocks[:4, 0] = [0, 1, 2, 252]
        blocks = blocks.reshape(3, 7 * size)
        tensors[name] = blocks, kind
        tensors[name + ".values"] = gguf.quants.dequantize(blocks, kind), None
    write(path, tensors)


def main():
    if sys.argv[1:] == ["make"]:
        make_packed(HERE / "packed.gguf")
        make_blocks(HERE / "blocks.gguf")
        make_every_type(HERE / "every_type.gguf")
        files = {path.name: listing(path) for path in sorted(HERE.glob("*.gguf"))}
        (HERE / "listing.json").write_text(json.dumps(files, ensure_ascii=False).replace('], [', '],\n ['))
    elif sys.argv[1:2] == ["list"]:
        print(json.dumps({path: listing(path) for path in sys.argv[2:]}))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()

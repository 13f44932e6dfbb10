#!/usr/bin/env python3
"""What llama.cpp's own package says about GGUF files: pip install gguf (0.19.0 made what lies here).

    gguf_py.py make           writes every_type.gguf, q8_0.gguf and listing.json of the files beside this script
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


def make_q8_0(path):
    """Numbers, and how the package packs them."""
    values = np.random.default_rng(7).standard_normal((9, 96)).astype(np.float32)
    values[0, :32] = 0
    values[1] *= 1e-6  # the scale is subnormal in F16
    values[2] *= 1e6
    values[3, :32] = (np.arange(32) - 16) * 0.5  # codes half way between two
    values[3, 0] = 127
    values[4, 32:64] = -0.0
    writer = gguf.GGUFWriter(path, "test")
    writer.add_tensor("values", values)
    writer.add_tensor("packed", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    if sys.argv[1:] == ["make"]:
        make_q8_0(HERE / "q8_0.gguf")
        make_every_type(HERE / "every_type.gguf")
        files = {path.name: listing(path) for path in sorted(HERE.glob("*.gguf"))}
        (HERE / "listing.json").write_text(json.dumps(files, ensure_ascii=False).replace('], [', '],\n ['))
    elif sys.argv[1:2] == ["list"]:
        print(json.dumps({path: listing(path) for path in sys.argv[2:]}))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()

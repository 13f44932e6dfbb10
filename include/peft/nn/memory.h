// Memory of the tensors of a program that trains on CPU.
#pragma once

namespace peft::nn {

// Lets libtorch reuse its large blocks for the rest of the process: call it once, before the first tensor is made.
// A training step asks for the same sizes again and again. The C library's allocator cuts them from one heap, which
// comes apart: it grows to about twice what the tensors need. Here a block is given to tensors of nearly its size
// alone, and what lies free is given back to the system beyond a sixteenth of the most that was in use.
//
// It replaces libtorch's CPU allocator of the whole process, so it is for programs, not for libraries.
void reuse_memory_blocks();

}  // namespace peft::nn

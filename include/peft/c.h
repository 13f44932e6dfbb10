/* The C interface of peft.cpp: inspect, convert, verify, merge, and the factors of an adapter as numbers.
 *
 * A function that can fail returns 0, or the exit code of the command line (1 bad input, 2 usage, 3 I/O or space,
 * 4 a bug, 5 interrupted). Then *error is set, unless error is NULL, and is freed by peft_error_free(). Nothing is
 * thrown across this interface.
 * Handles are freed by their own function, which takes NULL too. Texts that a handle returns are UTF-8, are never NULL,
 * and live as long as the handle; numbers of an index out of range are 0, texts "".
 * Options are structs that may be zeroed: every zero is the default. A NULL pointer to options means all defaults.
 * Different handles may be used in different threads at once; one handle by one thread at a time.
 */
#ifndef PEFT_C_H
#define PEFT_C_H

#include <stddef.h>
#include <stdint.h>

#include "peft/version.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "0.1.0" of the library that is linked; PEFT_VERSION is that of the headers. */
PEFT_API const char *peft_version(void);

/* ---- errors: the fields of peft/error.h ------------------------------------------------------------------------- */
typedef struct peft_error peft_error;
PEFT_API const char *peft_error_code(const peft_error *error);    /* "LO_SHAPE": docs/errors.md lists all */
PEFT_API const char *peft_error_message(const peft_error *error); /* everything in one line, safe for a terminal */
PEFT_API const char *peft_error_file(const peft_error *error);
PEFT_API const char *peft_error_tensor(const peft_error *error);
PEFT_API const char *peft_error_problem(const peft_error *error);
PEFT_API const char *peft_error_expected(const peft_error *error);
PEFT_API const char *peft_error_got(const peft_error *error);
PEFT_API const char *peft_error_hint(const peft_error *error);
PEFT_API void peft_error_free(peft_error *error);

/* ---- how an adapter is read ------------------------------------------------------------------------------------- */
typedef struct peft_input {
  const char *base;          /* the base model: its folder, a config.json, or a name in the local Hugging Face cache */
  const char *family;        /* model_type of the base, where only names are needed */
  const char *families_file; /* further families, in the form of data/families.json */
  const char *adapter_name;  /* of a folder with several adapters; NULL: the one in the folder itself */
  const char *from;          /* the layout, where the file fits several: "peft-fused" */
  int64_t num_experts;       /* 0: as the base or the file says */
  int ignore_unused;         /* not 0: tensors that belong to nothing are left out, with a warning */
  int follow_symlinks;       /* not 0: side files may be links that leave the folder */
} peft_input;

/* ---- how an output folder is written ---------------------------------------------------------------------------- */
typedef struct peft_output {
  int threads;     /* 0: all cores; the bytes do not depend on it */
  int no_sync;     /* not 0: files are not synced to the disk */
  int no_readback; /* not 0: what was written is not read again */
  int overwrite;   /* not 0: an existing output is replaced, atomically */
  /* Bytes written so far and in all; called from any thread. Returning something other than 0 stops the run. */
  int (*progress)(void *user, uint64_t done, uint64_t total);
  void *user;
} peft_output;

/* What convert or merge did. */
typedef struct peft_result peft_result;
PEFT_API const char *peft_result_exactness(const peft_result *result); /* "bit-exact", "value-exact", "rounded", "lossy" */
PEFT_API uint64_t peft_result_bytes_out(const peft_result *result);
PEFT_API size_t peft_result_num_warnings(const peft_result *result);
PEFT_API const char *peft_result_warning(const peft_result *result, size_t index);
PEFT_API void peft_result_free(peft_result *result);

/* ---- inspect ---------------------------------------------------------------------------------------------------- */
typedef struct peft_inspection peft_inspection;
PEFT_API int peft_inspect(const char *adapter, const peft_input *input, peft_inspection **inspection,
                          peft_error **error);
/* "peft-per-expert"; "dense" for a file without experts, "" where the layout cannot be decided. */
PEFT_API const char *peft_inspection_layout(const peft_inspection *inspection);
PEFT_API const char *peft_inspection_producer(const peft_inspection *inspection); /* "PEFT 0.18.1 (...)" */
PEFT_API const char *peft_inspection_model_type(const peft_inspection *inspection);
PEFT_API const char *peft_inspection_dtype(const peft_inspection *inspection);
/* Why the file cannot be decoded; "" when it can. The other fields then hold what is known all the same. */
PEFT_API const char *peft_inspection_problem(const peft_inspection *inspection);
PEFT_API int64_t peft_inspection_num_tensors(const peft_inspection *inspection);
PEFT_API int64_t peft_inspection_num_layers(const peft_inspection *inspection);
PEFT_API int64_t peft_inspection_num_experts(const peft_inspection *inspection);
PEFT_API uint64_t peft_inspection_parameters(const peft_inspection *inspection);
/* Programs and what they make of the file: "vLLM 0.32.0", "reads it right" | "refuses" | "silently wrong", and why. */
PEFT_API size_t peft_inspection_num_consumers(const peft_inspection *inspection);
PEFT_API const char *peft_inspection_consumer_name(const peft_inspection *inspection, size_t index);
PEFT_API const char *peft_inspection_consumer_verdict(const peft_inspection *inspection, size_t index);
PEFT_API const char *peft_inspection_consumer_why(const peft_inspection *inspection, size_t index);
PEFT_API size_t peft_inspection_num_warnings(const peft_inspection *inspection);
PEFT_API const char *peft_inspection_warning(const peft_inspection *inspection, size_t index);
PEFT_API void peft_inspection_free(peft_inspection *inspection);

/* ---- convert ---------------------------------------------------------------------------------------------------- */
typedef struct peft_convert_options {
  peft_input input;
  peft_output output;
  const char *to;    /* the layout, "peft-fused"; must be given */
  const char *dtype; /* "float32", "bfloat16", "float16"; NULL: as it is */
  int block_diagonal; /* not 0: gate and up stay apart even where they share lora_A */
} peft_convert_options;
/* Writes the folder `out`, complete and checked, or nothing. `result` may be NULL only if warnings do not matter. */
PEFT_API int peft_convert(const char *adapter, const char *out, const peft_convert_options *options,
                          peft_result **result, peft_error **error);

/* ---- verify ----------------------------------------------------------------------------------------------------- */
typedef struct peft_verify_options {
  peft_input a, b;
  int exact;   /* not 0: rounding is a difference */
  int threads; /* 0: all cores */
} peft_verify_options;
typedef struct peft_verification peft_verification;
/* 0 also where the adapters differ: ask peft_verification_same(). */
PEFT_API int peft_verify(const char *a, const char *b, const peft_verify_options *options,
                         peft_verification **verification, peft_error **error);
PEFT_API int peft_verification_same(const peft_verification *verification); /* 1: the same function */
PEFT_API const char *peft_verification_exactness(const peft_verification *verification);
PEFT_API double peft_verification_largest_relative(const peft_verification *verification);
PEFT_API int64_t peft_verification_compared(const peft_verification *verification); /* matrices */
PEFT_API int64_t peft_verification_identical(const peft_verification *verification);
/* The first 50 differences: where, and what. peft_verification_num_differences() counts all. */
PEFT_API int64_t peft_verification_num_differences(const peft_verification *verification);
PEFT_API const char *peft_verification_difference_site(const peft_verification *verification, size_t index);
PEFT_API const char *peft_verification_difference_what(const peft_verification *verification, size_t index);
/* Tensors that ignore_unused left out of the comparison, and why. */
PEFT_API size_t peft_verification_num_left_out(const peft_verification *verification);
PEFT_API const char *peft_verification_left_out(const peft_verification *verification, size_t index);
PEFT_API void peft_verification_free(peft_verification *verification);

/* ---- merge ------------------------------------------------------------------------------------------------------ */
typedef struct peft_weighted_adapter {
  const char *path;
  double weight; /* multiplies the adapter's scale; must be given, 1 as a rule */
} peft_weighted_adapter;
typedef struct peft_merge_options {
  peft_input input; /* its `base` is not used */
  peft_output output;
  const char *mode;        /* "best" (also NULL), "peft", "peft-safe", "fast" */
  const char *out_dtype;   /* NULL: as the base */
  uint64_t max_shard_size; /* bytes; 0: the base's own shards */
  int keep_quantized;      /* not 0: quantised tensors that no adapter touches stay as they are */
} peft_merge_options;
PEFT_API int peft_merge(const char *base, const peft_weighted_adapter *adapters, size_t num_adapters, const char *out,
                        const peft_merge_options *options, peft_result **result, peft_error **error);

/* ---- factors ---------------------------------------------------------------------------------------------------- */
typedef struct peft_adapter peft_adapter;
/* One weight matrix's update: delta W [out, in] = scale * B [out, rank] * A [rank, in]. */
typedef struct peft_factor {
  const char *module;     /* "model.layers.0.mlp.experts", as transformers 5 names it */
  const char *parameter;  /* "" of a module; "weight" of a router that is a parameter */
  const char *projection; /* of an expert: "gate", "up", "down", ...; else "" */
  int64_t expert;         /* -1: no expert */
  int64_t out, in, rank;
  double scale;
  int is_embedding; /* not 0: an update of the transposed weight, [dim, vocabulary] */
} peft_factor;
typedef enum peft_side { PEFT_LORA_A = 0, PEFT_LORA_B = 1 } peft_side;
PEFT_API int peft_adapter_open(const char *path, const peft_input *input, peft_adapter **adapter, peft_error **error);
PEFT_API size_t peft_adapter_num_factors(const peft_adapter *adapter);
/* 0, or 2 (USAGE) for an index that is out of range. */
PEFT_API int peft_adapter_factor(const peft_adapter *adapter, size_t index, peft_factor *factor, peft_error **error);
/* The values of lora_A [rank, in] or lora_B [out, rank], row after row, in fp32; `size` is the number of floats that
 * `values` holds, and must be that of the matrix. */
PEFT_API int peft_adapter_read(const peft_adapter *adapter, size_t index, peft_side side, float *values, size_t size,
                               peft_error **error);
PEFT_API size_t peft_adapter_num_warnings(const peft_adapter *adapter);
PEFT_API const char *peft_adapter_warning(const peft_adapter *adapter, size_t index);
PEFT_API void peft_adapter_free(peft_adapter *adapter);

#ifdef __cplusplus
}
#endif

#endif

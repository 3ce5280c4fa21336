// The C functions of this folder, for the loader (library.py) and for decoder.cpp.
//
// Pointers are to contiguous memory unless a stride is given; strides are in elements. dtype is 0
// for float, 1 for bf16, 2 for fp16. Functions that return an int check their indices first. They
// return -1, or the first sequence or token whose index is out of range, and then they have written
// nothing.
#pragma once

#include <cstdint>

#include "lora.h"
#include "parallel.h"

// Increase it with any change of a signature here; the loader compares it.
BM_EXPORT int bm_abi_version();

BM_EXPORT void bm_rms_norm(void* out, const void* x, void* residual, const void* weight,
                           int num_rows, int hidden, long x_stride, float eps, int dtype,
                           int num_threads);

BM_EXPORT void bm_silu_and_mul(void* out, const void* gate_up, int num_rows, int width, long stride,
                               int dtype, int num_threads);

BM_EXPORT void bm_rope(void* x, const float* cos, const float* sin, int num_tokens, int num_heads,
                       int head_dim, int half, long row_stride, int dtype, int num_threads);

BM_EXPORT int bm_write_kv(const char* key, const char* value, char* k_cache, char* v_cache,
                          const int64_t* slots, int num_tokens, long num_slots,
                          long key_stride_bytes, long value_stride_bytes, long row_bytes,
                          int num_threads);

BM_EXPORT int bm_rope_and_cache(void* qkv, void* k_cache, void* v_cache, const float* cos,
                                const float* sin, const int64_t* slots, const void* q_norm,
                                const void* k_norm, float eps, int num_tokens, int num_q_heads,
                                int num_kv_heads, int head_dim, int half, long num_slots,
                                long row_stride, int dtype, int num_threads);

// sinks is [num_q_heads], or null: a score that every query of a head gives to nothing.
BM_EXPORT int bm_paged_attention(void* out, const void* q, const void* k_cache, const void* v_cache,
                                 const int32_t* block_tables, const int32_t* cu_seqlens_q,
                                 const int32_t* seq_lens, int num_tokens, int num_seqs,
                                 int num_q_heads, int num_kv_heads, int head_dim, int num_blocks,
                                 int block_size, int max_blocks, long table_stride,
                                 long q_row_stride, long q_head_stride, long out_row_stride,
                                 long out_head_stride, float scale, int window, const float* sinks,
                                 int dtype, int num_threads);

// Returns the lanes of 4 bytes that a packed weight takes, or 0 if this instruction set does not
// multiply the dtype or k does not fill whole lanes.
BM_EXPORT long bm_linear_packed_lanes(int num_columns, int k, int dtype);

BM_EXPORT void bm_linear_pack(const void* weight, void* packed, int num_columns, int k, int dtype,
                              int num_threads);

// Returns the number of columns that are packed together.
BM_EXPORT int bm_linear_panel();

// y = x W^T + bias, with one bias per column of the packed panels. gated: packed and bias hold the
// gate's panels, then the same number of the up projection's, and y = silu(gate) * up.
// float_out: y is float with any dtype (the logits).
BM_EXPORT void bm_linear(void* out, const void* x, const void* packed, const float* bias,
                         int num_rows, int num_columns, int k, long x_stride, long out_stride,
                         int gated, int float_out, int dtype, int num_threads);

// Returns the lanes of 4 bytes that an int8 weight takes, for any k and any of the three dtypes.
BM_EXPORT long bm_int8_packed_lanes(int num_columns, int k);

BM_EXPORT void bm_int8_pack(const void* weight, void* packed, int num_columns, int k, int dtype,
                            int num_threads);

// Quantizes x [num_rows, k] to bytes [num_rows, k rounded up to 4] and the step of each row.
BM_EXPORT void bm_int8_quantize(const void* x, void* out, float* scales, int num_rows, int k,
                                long x_stride, int dtype, int num_threads);

// As bm_linear, on the results of bm_int8_quantize.
BM_EXPORT void bm_int8_linear(void* out, const void* x, const float* x_scales, const void* packed,
                              const float* bias, int num_rows, int num_columns, int k,
                              long out_stride, int gated, int out_dtype, int num_threads);

// Adds to out what adapters contribute; x is [num_rows, in]. A product of several parts (queries,
// keys and values) has one width for each. float_out: out is float with any dtype of x.
BM_EXPORT void bm_add_lora(void* out, const void* x, const BmLoraRows* groups, int num_groups,
                           const int* widths, int num_parts, int in, long out_stride, int dtype,
                           int float_out, int num_threads);

// out = silu(gate) * up for gate_up [num_rows, 2 * width] in float; out in the dtype.
BM_EXPORT void bm_float_silu_and_mul(void* out, const float* gate_up, int num_rows, int width,
                                     int dtype, int num_threads);

// Returns the lanes of 4 bytes that a weight of 4 bits takes. group is a multiple of 32 and divides
// k, or is 32.
BM_EXPORT long bm_int4_packed_lanes(int num_columns, int k, int group, int has_zeros);

// q is [num_columns, k], one weight from 0 to 15 per byte; scales and zeros are [num_columns,
// groups]; zeros may be null: all are 8.
BM_EXPORT void bm_int4_pack(const void* q, const float* scales, const float* zeros, void* packed,
                            int num_columns, int k, int group, int num_threads);

// Quantizes x [num_rows, k] to bytes [num_rows, k rounded up to 32], and to the step and the sum of
// each block of 32 [num_rows, number of blocks, 2].
BM_EXPORT void bm_int4_quantize(const void* x, void* out, float* blocks, int num_rows, int k,
                                long x_stride, int dtype, int num_threads);

// As bm_linear, on the results of bm_int4_quantize.
BM_EXPORT void bm_int4_linear(void* out, const void* x, const float* blocks, const void* packed,
                              const float* bias, int num_rows, int num_columns, int k, int group,
                              int has_zeros, long out_stride, int gated, int out_dtype,
                              int num_threads);

// Logits are float, -inf forbids a token; out is [num_rows].
BM_EXPORT void bm_sample(int64_t* out, const float* logits, const float* temperature,
                         const int64_t* top_k, const float* top_p, const float* min_p_gaps,
                         const int64_t* seeds, const int64_t* positions, int num_rows,
                         int vocab_size, long row_stride, int num_threads);

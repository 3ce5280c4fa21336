// A small matrix product that stays in registers, on packed operands; attention and linear use it.
//
// All sizes along k are counted in 32-bit lanes. A lane holds one float or, if the CPU multiplies
// bf16 (AVX512_BF16), two neighbouring bf16: `Float` and `Bf16Pair` below.
#pragma once

#include "vec.h"

namespace {

typedef uint32_t Lane __attribute__((may_alias));

struct Float {
  static constexpr int kPerLane = 1;
  typedef vf Sum;
  typedef float Element;
  static vf multiply_add(vf sum, Lane a, vf b) {
    float value;
    std::memcpy(&value, &a, 4);
    return sum + value * b;
  }
};

#if defined(__AVX512BF16__)
struct Bf16Pair {
  static constexpr int kPerLane = 2;
  typedef vf Sum;
  typedef bf16 Element;
  static vf multiply_add(vf sum, Lane a, vf b) {
    return reinterpret_cast<vf>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                 reinterpret_cast<__m512bh>(_mm512_set1_epi32(a)),
                                                 reinterpret_cast<__m512bh>(b)));
  }
};
typedef Bf16Pair MulBf16;
#else
typedef Float MulBf16;  // bf16 operands are widened when they are packed
#endif

// The registers must hold kTileRows * kTileVectors sums, kTileVectors of b and one of a.
#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVectors = 4;  // 29 of 32
#else
constexpr int kTileRows = 4, kTileVectors = 2;  // 11 of 16
#endif

// c[rows, vectors * kLanes] (+)= a[rows, k] * b[k, vectors * kLanes]; strides in lanes. Prefetches
// kFetch cache lines per step of k, beginning at `fetch`.
template <class Mul, int kRows, int kVectors, int kFetch>
inline void multiply_tile(const Lane* a, long a_stride, const Lane* b, long b_stride, int k,
                          float* c, long c_stride, bool add, const char* fetch) {
  typedef typename Mul::Sum Sum;
  Sum sums[kRows][kVectors];
  for (int i = 0; i < kRows; i++)
    for (int j = 0; j < kVectors; j++)
      sums[i][j] = add ? reinterpret_cast<Sum>(load(c + i * c_stride + j * kLanes)) : Sum{};
  for (int kk = 0; kk < k; kk++) {
    vf column[kVectors];
    for (int i = 0; i < kFetch; i++, fetch += 64) prefetch(fetch);
    for (int j = 0; j < kVectors; j++)
      column[j] = load(reinterpret_cast<const float*>(b + kk * b_stride) + j * kLanes);
    for (int i = 0; i < kRows; i++) {
      Lane left = a[i * a_stride + kk];
      for (int j = 0; j < kVectors; j++)
        sums[i][j] = Mul::multiply_add(sums[i][j], left, column[j]);
    }
  }
  for (int i = 0; i < kRows; i++)
    for (int j = 0; j < kVectors; j++)
      store(c + i * c_stride + j * kLanes, reinterpret_cast<vf>(sums[i][j]));
}

// Picks the instance for a number of rows (1 to kTileRows) that is known at run time.
template <class Mul, int kVectors, int kFetch = 0, int kRows = kTileRows>
inline void multiply_rows(int rows, const Lane* a, long a_stride, const Lane* b, long b_stride,
                          int k, float* c, long c_stride, bool add, const char* fetch = nullptr) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      multiply_rows<Mul, kVectors, kFetch, kRows - 1>(rows, a, a_stride, b, b_stride, k, c,
                                                      c_stride, add, fetch);
      return;
    }
  }
  multiply_tile<Mul, kRows, kVectors, kFetch>(a, a_stride, b, b_stride, k, c, c_stride, add, fetch);
}

// Does the same for a number of vectors (1 to kTileVectors).
template <class Mul, int kVectors = kTileVectors>
inline void multiply_columns(int vectors, int rows, const Lane* a, long a_stride, const Lane* b,
                             long b_stride, int k, float* c, long c_stride, bool add) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors) {
      multiply_columns<Mul, kVectors - 1>(vectors, rows, a, a_stride, b, b_stride, k, c, c_stride,
                                          add);
      return;
    }
  }
  for (int row = 0; row < rows; row += kTileRows)
    multiply_rows<Mul, kVectors>(min_int(rows - row, kTileRows), a + row * a_stride, a_stride, b,
                                 b_stride, k, c + row * c_stride, c_stride, add);
}

// Takes any size: columns [0, vectors * kLanes) in panels of kTileVectors.
template <class Mul>
inline void multiply(int rows, int vectors, int k, const Lane* a, long a_stride, const Lane* b,
                     long b_stride, float* c, long c_stride, bool add) {
  for (int vec = 0; vec < vectors; vec += kTileVectors)
    multiply_columns<Mul>(min_int(vectors - vec, kTileVectors), rows, a, a_stride, b + vec * kLanes,
                          b_stride, k, c + vec * kLanes, c_stride, add);
}

#if defined(__AVX512BW__)
// Transposes 16 rows of 16 lanes in registers.
inline void transpose16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}
#endif

// out[lane, key] = rows[key][lane] for kLanes rows; a null row reads as zeros, and so do the bytes
// past row_bytes that fill the last lane.
inline void transpose_rows(const void* const* rows, int row_bytes, Lane* out, long out_stride) {
  int num_lanes = (row_bytes + 3) / 4;
#if defined(__AVX512BW__)
  for (int lane = 0; lane < num_lanes; lane += 16) {
    int bytes = min_int(row_bytes - lane * 4, 64);
    __mmask64 mask = bytes == 64 ? ~0ull : (1ull << bytes) - 1;
    __m512i r[16];
    for (int i = 0; i < 16; i++)
      r[i] = rows[i] ? _mm512_maskz_loadu_epi8(mask, static_cast<const char*>(rows[i]) + lane * 4)
                     : _mm512_setzero_si512();
    transpose16(r);
    int count = min_int(num_lanes - lane, 16);
    for (int i = 0; i < count; i++) _mm512_storeu_si512(out + (lane + i) * out_stride, r[i]);
  }
#else
  for (int i = 0; i < kLanes; i++) {
    for (int lane = 0; lane < num_lanes; lane++) {
      Lane value = 0;
      if (rows[i])
        std::memcpy(&value, static_cast<const char*>(rows[i]) + lane * 4,
                    static_cast<size_t>(min_int(row_bytes - lane * 4, 4)));
      out[lane * out_stride + i] = value;
    }
  }
#endif
}

#if defined(__AVX512BF16__)
// Interleaves two rows of bf16: to[i] holds one element of each. The order of the elements changes;
// `interleaved` restores it. A null row reads as zeros.
inline void interleave_rows(const bf16* first, const bf16* second, int count, Lane* to) {
  for (int i = 0; i < count; i += 32, to += 32) {
    __mmask32 wanted = count - i >= 32 ? ~0u : (1u << (count - i)) - 1;
    __m512i a = _mm512_maskz_loadu_epi16(wanted, first + i);
    __m512i b = _mm512_maskz_loadu_epi16(wanted, second + i);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(a, b));
    _mm512_storeu_si512(to + 16, _mm512_unpackhi_epi16(a, b));
  }
}
#endif

// Returns elements [i, i + kLanes) of a row of sums over packed values, in the original order.
template <class Mul>
inline vf interleaved(const float* sums, int i) {
  if constexpr (Mul::kPerLane == 1) {
    return load(sums + i);
  } else {
#if defined(__AVX512BF16__)
    // Unpacking puts four of each eight elements into the first vector and four into the second.
    const float* pair = sums + i / 32 * 32;
    vi lane = lane_index() + i % 32, quarter = lane / 8 * 4 + lane % 4;
    vi index = (lane & 4) != 0 ? quarter + 16 : quarter;
    return reinterpret_cast<vf>(_mm512_permutex2var_ps(reinterpret_cast<__m512>(load(pair)),
                                                       reinterpret_cast<__m512i>(index),
                                                       reinterpret_cast<__m512>(load(pair + 16))));
#endif
  }
}

}  // namespace

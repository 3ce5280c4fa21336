// Attention of a few query rows to a tile of keys and values, read in place from the cache.
//
// Transposing a tile costs as much as multiplying many rows by it. For the few rows of a decode
// step keys are multiplied one by one in separate lanes, and the lanes of 16 keys are added up in a
// tree; values are multiplied in pairs. Only for bf16, on a CPU that multiplies it.
#pragma once

#include <type_traits>

#include "tile.h"

namespace {

#if defined(__AVX512BF16__)
inline vf dot_pairs(vf sum, vf a, vf b) {
  return reinterpret_cast<vf>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}

// Lane l becomes a[l] + a[l + kDistance] if the bit kDistance of l is clear, otherwise
// b[l] + b[l - kDistance]: half as many vectors, each with twice as many sums.
template <int kDistance>
inline vf fold(vf a, vf b) {
  constexpr __mmask16 kUpper = kDistance == 8   ? 0xff00
                               : kDistance == 4 ? 0xf0f0
                               : kDistance == 2 ? 0xcccc
                                                : 0xaaaa;
  vi partner = lane_index() ^ kDistance;
  partner = (lane_index() & kDistance) != 0 ? partner + kLanes : partner;
  __m512 first = reinterpret_cast<__m512>(a), second = reinterpret_cast<__m512>(b);
  __m512 stay = _mm512_mask_blend_ps(kUpper, first, second);
  __m512 move = _mm512_permutex2var_ps(first, reinterpret_cast<__m512i>(partner), second);
  return reinterpret_cast<vf>(_mm512_add_ps(stay, move));
}

// kRows query rows of 32 * kSteps elements; kSteps is even.
template <int kRows, int kSteps>
class DirectTile {
 public:
  // Offsets of a tile's rows in a cache, and of the rows to prefetch.
  struct Rows {
    const bf16* cache;
    const long *starts, *next_starts;
  };

  // scores[row * stride + i] = query row times key i, for kLanes keys.
  static void score(const bf16* queries, const Rows& keys, float* scores, long stride) {
    Sums sums = add_up<1, 0>(queries, keys);
    for (int row = 0; row < kRows; row++) store(scores + row * stride, sums.of[row]);
  }

  // sums[row * width] += weights times `count` values, in the order of `interleave_rows`. An odd
  // count reads one more row, whose weight is 0.
  static void add_values(const Lane* weights, long stride, const Rows& values, int count,
                         float* sums, long width) {
    for (int step = 0; step < kSteps; step += 2)
      add_columns(weights, stride, values, count, step * 32, sums, width);
  }

 private:
  struct Sums {
    vf of[kRows];
  };

  // The tree: its leaves are keys, its inner nodes `fold` two halves.
  template <int kDistance, int kKey>
  static inline __attribute__((always_inline)) Sums add_up(const bf16* queries, const Rows& keys) {
    Sums sums;
    if constexpr (kDistance == kLanes) {
      const bf16* key = keys.cache + keys.starts[kKey];
      const bf16* next = keys.cache + keys.next_starts[kKey];
      vf parts[kSteps];
#pragma GCC unroll 8
      for (int step = 0; step < kSteps; step++) {
        parts[step] = load(reinterpret_cast<const float*>(key + 32 * step));
        prefetch(next + 32 * step);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; row++) {
        sums.of[row] = vf{};
#pragma GCC unroll 8
        for (int step = 0; step < kSteps; step++)
          sums.of[row] =
              dot_pairs(sums.of[row],
                        load(reinterpret_cast<const float*>(queries + (row * kSteps + step) * 32)),
                        parts[step]);
      }
    } else {
      Sums low = add_up<kDistance * 2, kKey>(queries, keys);
      Sums high = add_up<kDistance * 2, kKey + kDistance>(queries, keys);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; row++)
        sums.of[row] = fold<kDistance>(low.of[row], high.of[row]);
    }
    return sums;
  }

  static inline void add_columns(const Lane* weights, long stride, const Rows& values, int count,
                                 int column, float* sums, long width) {
    constexpr int kVectors = 4;  // 64 columns
    vf added[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; row++)
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; i++)
        added[row][i] = load(sums + row * width + column + i * kLanes);
    const bf16* cache = values.cache + column;
    for (int pair = 0; 2 * pair < count; pair++) {
      const bf16* first = cache + values.starts[2 * pair];
      const bf16* second = cache + values.starts[2 * pair + 1];
      const bf16* next = cache + values.next_starts[2 * pair];
      const bf16* after = cache + values.next_starts[2 * pair + 1];
      vf pairs[kVectors];
#pragma GCC unroll 8
      for (int step = 0; step < kVectors / 2; step++) {
        __m512i a = _mm512_loadu_si512(first + 32 * step);
        __m512i b = _mm512_loadu_si512(second + 32 * step);
        pairs[2 * step] = reinterpret_cast<vf>(_mm512_unpacklo_epi16(a, b));
        pairs[2 * step + 1] = reinterpret_cast<vf>(_mm512_unpackhi_epi16(a, b));
        prefetch(next + 32 * step);
        prefetch(after + 32 * step);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; row++) {
        vf weight = reinterpret_cast<vf>(_mm512_set1_epi32(weights[row * stride + pair]));
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; i++)
          added[row][i] = dot_pairs(added[row][i], weight, pairs[i]);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; row++)
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; i++)
        store(sums + row * width + column + i * kLanes, added[row][i]);
  }
};

template <int kSteps, class Body>
inline bool with_rows(int num_rows, Body body) {
  // clang-format off
  switch (num_rows) {
    case 1: body(DirectTile<1, kSteps>{}); return true;
    case 2: body(DirectTile<2, kSteps>{}); return true;
    case 3: body(DirectTile<3, kSteps>{}); return true;
    case 4: body(DirectTile<4, kSteps>{}); return true;
    case 5: body(DirectTile<5, kSteps>{}); return true;
    case 6: body(DirectTile<6, kSteps>{}); return true;
    case 7: body(DirectTile<7, kSteps>{}); return true;
    case 8: body(DirectTile<8, kSteps>{}); return true;
    default: return false;  // not tried: with more rows, sums and queries exceed the registers
  }
  // clang-format on
}
#endif

// Calls body with the DirectTile for these rows; returns whether there is one.
template <class T, class Body>
inline bool with_direct_tile(int num_rows, int head_dim, Body body) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same<T, bf16>::value) {
    if (head_dim == 64) return with_rows<2>(num_rows, body);
    if (head_dim == 128) return with_rows<4>(num_rows, body);
  }
#endif
  (void)num_rows, (void)head_dim, (void)body;
  return false;
}

}  // namespace

// y = x W^T + b with weights and activations in 8-bit integers, summed exactly in 32-bit ones.
//
// A weight column has one scale, max |w| / 127, computed when it is packed. A row of activations
// has its own scale, computed when it is multiplied. So a row's result depends on that row alone; a
// row that is not finite gets a scale that is not finite and does not affect other rows.
//
// Both are rotated first: blocks of up to 64 neighbours along k go through a Hadamard transform. It
// multiplies their product by the block's length and spreads a single large value, which would make
// the steps too coarse, over its block.
// Source: QuaRot, Ashkboos et al. 2024, section 4.
//
// The CPU's instruction multiplies unsigned by signed bytes. So activations are stored with 128
// added, and every sum starts at -128 times the column's sum of weights, which is stored with the
// column. Sums wrap around modulo 2^32; the final one is below 2^31, so it is exact on any
// instruction set.
#include <memory>
#include <utility>

#include "linear.h"
#include "ops.h"

namespace {

constexpr int kLevels = 127;
constexpr int kMaxBlock = 64;      // neighbours that are rotated together
constexpr long kQuantizeWork = 4;  // relative to an element of a norm, which counts 1
constexpr int kHeaderRows = 2;     // of kPanel lanes before a panel's weights: offsets, then scales
constexpr uint32_t kNotFinite = 0x7f800000;  // the bits of a float from here on are inf or NaN
constexpr float kLeastMax = 1e-30f;  // up to it a row counts as zeros: 127 / max must be finite

// sum += a0 b0 + a1 b1 + a2 b2 + a3 b3 in each lane: four unsigned bytes of a, four signed of b.
struct Int8Quad {
  typedef vi Sum;
  static vi multiply_add(vi sum, Lane a, vf b) {
#if defined(__AVX512VNNI__)
    return reinterpret_cast<vi>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                    _mm512_set1_epi32(static_cast<int>(a)),
                                                    reinterpret_cast<__m512i>(b)));
#elif defined(__AVXVNNI__)
    return reinterpret_cast<vi>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum),
                                                        _mm256_set1_epi32(static_cast<int>(a)),
                                                        reinterpret_cast<__m256i>(b)));
#elif defined(__AVX512BW__) && BM_VEC_BYTES == 64
    // In 16-bit halves: the byte instruction before VNNI saturates.
    __m512i columns = reinterpret_cast<__m512i>(b);
    __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(columns, 8), 8);
    __m512i odd = _mm512_srai_epi16(columns, 8);
    __m512i products = _mm512_add_epi32(
        _mm512_madd_epi16(_mm512_set1_epi32(static_cast<int>(a & 0x00ff00ff)), even),
        _mm512_madd_epi16(_mm512_set1_epi32(static_cast<int>(a >> 8 & 0x00ff00ff)), odd));
    return reinterpret_cast<vi>(_mm512_add_epi32(reinterpret_cast<__m512i>(sum), products));
#elif defined(__AVX2__) && BM_VEC_BYTES == 32
    __m256i columns = reinterpret_cast<__m256i>(b);
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(columns, 8), 8);
    __m256i odd = _mm256_srai_epi16(columns, 8);
    __m256i products = _mm256_add_epi32(
        _mm256_madd_epi16(_mm256_set1_epi32(static_cast<int>(a & 0x00ff00ff)), even),
        _mm256_madd_epi16(_mm256_set1_epi32(static_cast<int>(a >> 8 & 0x00ff00ff)), odd));
    return reinterpret_cast<vi>(_mm256_add_epi32(reinterpret_cast<__m256i>(sum), products));
#else
    vu total = reinterpret_cast<vu>(sum);
    vi columns = reinterpret_cast<vi>(b);
    for (int byte = 0; byte < 4; byte++) {
      vi factor = (columns << (24 - 8 * byte)) >> 24;
      total += reinterpret_cast<vu>(factor) * (a >> 8 * byte & 0xff);
    }
    return reinterpret_cast<vi>(total);
#endif
  }
};

// Returns the length of a block: the largest power of two up to 64 that divides k.
inline int block_length(int k) {
  int length = k & -k;
  return length < kMaxBlock ? length : kMaxBlock;
}

#if defined(__clang__)
template <int kDistance, int... kLane>
inline vf exchange(vf x, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(x, x, (kLane ^ kDistance)...);
}
#endif

// One stage between lanes: replaces x[i], x[i + distance] by their sum and their difference.
template <int kDistance>
inline vf butterfly(vf x) {
#if defined(__clang__)
  vf other = exchange<kDistance>(x, std::make_integer_sequence<int, kLanes>{});
#else
  vf other = __builtin_shuffle(x, lane_index() ^ kDistance);
#endif
  vf sign = (lane_index() & kDistance) != 0 ? splat(-1.0f) : splat(1.0f);
  return other + x * sign;
}

// Does the additions of rotate_short in the same order, in registers.
template <class T>
inline void rotate_long(const T* x, float* out) {
  constexpr int kVectors = kMaxBlock / kLanes;
  vf v[kVectors];
  for (int i = 0; i < kVectors; i++) {
    v[i] = butterfly<2>(butterfly<1>(load(x + i * kLanes)));
    if constexpr (kLanes > 4) v[i] = butterfly<4>(v[i]);
    if constexpr (kLanes > 8) v[i] = butterfly<8>(v[i]);
  }
  for (int distance = 1; distance < kVectors; distance *= 2) {
    for (int i = 0; i < kVectors; i++) {
      if ((i & distance) != 0) continue;
      vf a = v[i], b = v[i + distance];
      v[i] = a + b;
      v[i + distance] = a - b;
    }
  }
  for (int i = 0; i < kVectors; i++) store(out + i * kLanes, v[i]);
}

// Rotates a block of any power of two in place.
inline void rotate_short(float* out, int length) {
  for (int distance = 1; distance < length; distance *= 2) {
    for (int i = 0; i < length; i++) {
      if ((i & distance) != 0) continue;
      float a = out[i], b = out[i + distance];
      out[i] = a + b;
      out[i + distance] = a - b;
    }
  }
}

template <class T>
void rotate_row(const T* x, float* out, int k) {
  int length = block_length(k);
  if (length == kMaxBlock) {
    for (int i = 0; i < k; i += kMaxBlock) rotate_long(x + i, out + i);
    return;
  }
  each_vector(k, [&](int i, int n) { store_upto(out + i, load_upto(x + i, n), n); });
  for (int i = 0; i < k; i += length) rotate_short(out + i, length);
}

// Returns max |x|; a NaN counts as larger than infinity.
inline float largest(const float* x, int n) {
  vi most = {};
  each_vector(n, [&](int i, int m) {
    vi magnitude = reinterpret_cast<vi>(load_upto(x + i, m)) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  });
  int32_t bits = 0;
  for (int i = 0; i < kLanes; i++) bits = most[i] > bits ? most[i] : bits;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Writes n integers, exclusive-ored with flip, and zeros up to the next multiple of 4. Returns the
// size of a step: NaN for a row that is not finite, whose integers are zeros.
inline float quantize_row(const float* x, int n, int8_t* out, int flip) {
  float most = largest(x, n);
  uint32_t bits;
  std::memcpy(&bits, &most, 4);
  bool finite = bits < kNotFinite;
  float steps = finite && most > kLeastMax ? kLevels / most : 0.0f;
  each_vector(n, [&](int i, int m) {
    vf scaled = steps == 0.0f ? vf{} : load_upto(x + i, m) * steps;
    vb bytes = __builtin_convertvector(round_to_int(scaled) ^ flip, vb);
    if (m == kLanes) *reinterpret_cast<vb_any*>(out + i) = bytes;
    else std::memcpy(out + i, &bytes, static_cast<size_t>(m));
  });
  for (int i = n; i < round_up(n, 4); i++) out[i] = 0;
  return finite ? most / kLevels : __builtin_nanf("");
}

template <class T>
void quantize_rows(const T* x, int8_t* out, float* scales, int num_rows, int k, long x_stride,
                   int num_threads) {
  long width = round_up(k, 4);
  parallel_rows(num_rows, kQuantizeWork * k, num_threads, [=](int begin, int end) {
    std::unique_ptr<float[]> rotated(new float[static_cast<size_t>(k)]);
    for (int row = begin; row < end; row++) {
      rotate_row(x + row * x_stride, rotated.get(), k);
      scales[row] = quantize_row(rotated.get(), k, out + row * width, -128);
    }
  });
}

template <class Out>
struct Int8Linear {
  Out* out;
  const int8_t* x;        // [num_rows, k_lanes * 4], with 128 added
  const float* x_scales;  // [num_rows]
  const Lane* packed;
  const float* bias;
  int num_rows, k_lanes, num_columns;
  long out_stride;
  bool gated;

  const Lane* panel(int index) const {
    return packed + static_cast<long>(index) * (kHeaderRows + k_lanes) * kPanel;
  }

  // Computes integer sums, stored as the bits of floats.
  void multiply(int index, int next, int first_row, int rows, float* sums) const {
    const Lane* weights = panel(index);
    for (int row = 0; row < rows; row++)
      std::memcpy(sums + row * kPanel, weights, sizeof(float) * kPanel);
    const Lane* lanes = reinterpret_cast<const Lane*>(x) + static_cast<long>(first_row) * k_lanes;
    multiply_panel<Int8Quad>(lanes, k_lanes, weights + kHeaderRows * kPanel, panel(next), rows,
                             k_lanes, sums, true);
  }

  vf value(int index, const float* sums, int first_row, int row, int i) const {
    const float* scales = reinterpret_cast<const float*>(panel(index) + kPanel);
    vi sum = reinterpret_cast<vi>(load(sums + row * kPanel + i));
    vf y = __builtin_convertvector(sum, vf) * x_scales[first_row + row] * load(scales + i);
    return bias == nullptr ? y : y + load(bias + index * kPanel + i);
  }

  void run(int num_threads) const {
    if (num_rows == 0) return;
    int panels = (num_columns + kPanel - 1) / kPanel;
    RowBlocks blocks = split_rows(num_rows, panels, num_threads);
    parallel_for(panels * blocks.count, num_threads, [&](int index) {
      alignas(64) float sums[kMaxBlockRows * kPanel], ups[kMaxBlockRows * kPanel];
      PanelTask task = panel_task(index, blocks, num_rows, panels, num_threads);
      int panel = task.panel, up = panel + panels, first_row = task.first_row;
      int column = panel * kPanel;
      multiply(panel, gated ? up : task.next_panel, first_row, task.rows, sums);
      if (gated) multiply(up, task.next_panel, first_row, task.rows, ups);
      store_rows(
          out + first_row * out_stride + column, out_stride, task.rows,
          min_int(kPanel, num_columns - column), gated,
          [&](int row, int i) { return value(panel, sums, first_row, row, i); },
          [&](int row, int i) { return value(up, ups, first_row, row, i); });
    });
  }
};

// Packs weight [num_columns, k] into panels; columns past the last are zeros.
template <class T>
void pack(const T* weight, Lane* packed, int num_columns, int k, int num_threads) {
  int panels = (num_columns + kPanel - 1) / kPanel, k_lanes = (k + 3) / 4, width = 4 * k_lanes;
  parallel_for(panels, num_threads, [=](int panel) {
    Lane* to = packed + static_cast<long>(panel) * (kHeaderRows + k_lanes) * kPanel;
    Lane* offsets = to;
    float* scales = reinterpret_cast<float*>(to + kPanel);
    std::unique_ptr<float[]> rotated(new float[static_cast<size_t>(k)]);
    std::unique_ptr<int8_t[]> bytes(new int8_t[static_cast<size_t>(kLanes) * width]);
    for (int first = 0; first < kPanel; first += kLanes) {
      const void* rows[kLanes] = {};
      for (int i = 0; i < kLanes; i++) {
        long column = static_cast<long>(panel) * kPanel + first + i;
        offsets[first + i] = 0;
        scales[first + i] = 0.0f;
        if (column >= num_columns) continue;
        int8_t* row = bytes.get() + static_cast<long>(i) * width;
        rotate_row(weight + column * k, rotated.get(), k);
        // Rotating both factors multiplies their product by the block length.
        scales[first + i] =
            quantize_row(rotated.get(), k, row, 0) / static_cast<float>(block_length(k));
        for (int j = 0; j < k; j++) offsets[first + i] -= 128u * static_cast<uint32_t>(row[j]);
        rows[i] = row;
      }
      transpose_rows(rows, width, to + kHeaderRows * kPanel + first, kPanel);
    }
  });
}

}  // namespace

BM_EXPORT long bm_int8_packed_lanes(int num_columns, int k) {
  return static_cast<long>(round_up(num_columns, kPanel)) * (kHeaderRows + (k + 3) / 4);
}

BM_EXPORT void bm_int8_pack(const void* weight, void* packed, int num_columns, int k, int dtype,
                            int num_threads) {
  with_dtype(dtype, [=](auto zero) {
    pack(static_cast<const decltype(zero)*>(weight), static_cast<Lane*>(packed), num_columns, k,
         num_threads);
  });
}

BM_EXPORT void bm_int8_quantize(const void* x, void* out, float* scales, int num_rows, int k,
                                long x_stride, int dtype, int num_threads) {
  with_dtype(dtype, [=](auto zero) {
    quantize_rows(static_cast<const decltype(zero)*>(x), static_cast<int8_t*>(out), scales,
                  num_rows, k, x_stride, num_threads);
  });
}

BM_EXPORT void bm_int8_linear(void* out, const void* x, const float* x_scales, const void* packed,
                              const float* bias, int num_rows, int num_columns, int k,
                              long out_stride, int gated, int out_dtype, int num_threads) {
  with_dtype(out_dtype, [=](auto zero) {
    typedef decltype(zero) Out;
    Int8Linear<Out>{static_cast<Out*>(out),
                    static_cast<const int8_t*>(x),
                    x_scales,
                    static_cast<const Lane*>(packed),
                    bias,
                    num_rows,
                    (k + 3) / 4,
                    num_columns,
                    out_stride,
                    gated != 0}
        .run(num_threads);
  });
}

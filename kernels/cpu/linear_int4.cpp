// y = x W^T + b with weights of 4 bits in groups and activations of 8 bits in blocks.
//
// A group of a column's weights, a multiple of kBlock along k, has a scale and a zero point:
// w = unit * scale * (q - zero), with q from 0 to 15. Scales and zero points are halves; the unit,
// a power of two per column, brings the scales into their range. Each block of kBlock activations
// has a step, max |x| / 127, and the sum of its integers. A block's product is
//
//   (sum of q_w q_x  -  zero * sum of q_x) * (scale * step),
//
// of which the first factor is exact for whole zero points. Blocks are added up in float, in their
// order, so a row's result depends on that row alone. A block that is not finite has the step NaN.
//
// A panel is a stream: the units; then, for each group, scales, zero points (unless all are 8) and
// four steps per block. A lane of a step holds eight weights of a column: the lower halves of its
// bytes are the first four along k, the upper halves the next four.
// Source: the blocks of llama.cpp's Q4_0 and Q8_0, Gerganov et al.
#include <cmath>

#include "linear.h"
#include "ops.h"

namespace {

constexpr int kBlock = 32;                  // activations that share a step
constexpr int kBlockLanes = kBlock / 4;     // of four activations each
constexpr int kBlockSteps = kBlock / 8;     // lanes of packed weights
constexpr int kLevels = 127;                // largest magnitude of a quantized activation
constexpr int kStoredZero = 8;              // the zero point of symmetric weights
constexpr float kLeastMax = 1e-30f;         // up to it a block counts as zeros: 127 / max is finite
constexpr long kQuantizeWork = 2;           // relative to an element of a norm, which counts 1
constexpr int32_t kNotFinite = 0x7f800000;  // the bits of a float from here on are inf or NaN

// Sums of four products per lane: unsigned bytes of weights, signed bytes of activations. Sums of
// one block are kept in 16 bits where 32 cost an instruction more: 8 * 2 * 15 * 127 < 2^15.
struct Int4Quad {
#if defined(__AVX512VNNI__)
  static vi add(vi sum, vi weights, Lane x) {
    return reinterpret_cast<vi>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                    reinterpret_cast<__m512i>(weights),
                                                    _mm512_set1_epi32(static_cast<int>(x))));
  }
  static vi total(vi sum) { return sum; }
#elif defined(__AVXVNNI__)
  static vi add(vi sum, vi weights, Lane x) {
    return reinterpret_cast<vi>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum),
                                                        reinterpret_cast<__m256i>(weights),
                                                        _mm256_set1_epi32(static_cast<int>(x))));
  }
  static vi total(vi sum) { return sum; }
#elif defined(__AVX512BW__)
  static vi add(vi sum, vi weights, Lane x) {
    __m512i products = _mm512_maddubs_epi16(reinterpret_cast<__m512i>(weights),
                                            _mm512_set1_epi32(static_cast<int>(x)));
    return reinterpret_cast<vi>(_mm512_add_epi16(reinterpret_cast<__m512i>(sum), products));
  }
  static vi total(vi sum) {
    return reinterpret_cast<vi>(
        _mm512_madd_epi16(reinterpret_cast<__m512i>(sum), _mm512_set1_epi16(1)));
  }
#elif defined(__AVX2__)
  static vi add(vi sum, vi weights, Lane x) {
    __m256i products = _mm256_maddubs_epi16(reinterpret_cast<__m256i>(weights),
                                            _mm256_set1_epi32(static_cast<int>(x)));
    return reinterpret_cast<vi>(_mm256_add_epi16(reinterpret_cast<__m256i>(sum), products));
  }
  static vi total(vi sum) {
    return reinterpret_cast<vi>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(sum), _mm256_set1_epi16(1)));
  }
#else
  static vi add(vi sum, vi weights, Lane x) {
    for (int byte = 0; byte < 4; byte++) {
      int32_t factor = static_cast<int8_t>(x >> 8 * byte & 0xff);
      sum += (weights >> 8 * byte & 0xff) * factor;
    }
    return sum;
  }
  static vi total(vi sum) { return sum; }
#endif
};

struct BlockStep {
  float step;  // of the integers of a block of activations
  float sum;   // of these integers
};

inline void quantize_block(const float* x, int8_t* out, BlockStep* block) {
  vi most = {};
  for (int i = 0; i < kBlock; i += kLanes) {
    vi magnitude = reinterpret_cast<vi>(load(x + i)) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  int32_t bits = 0;
  for (int i = 0; i < kLanes; i++) bits = most[i] > bits ? most[i] : bits;
  float largest;
  std::memcpy(&largest, &bits, 4);
  bool finite = bits < kNotFinite;
  float steps = finite && largest > kLeastMax ? kLevels / largest : 0.0f;
  vi sums = {};
  for (int i = 0; i < kBlock; i += kLanes) {
    vi integers = steps == 0.0f ? vi{} : round_to_int(load(x + i) * steps);
    *reinterpret_cast<vb_any*>(out + i) = __builtin_convertvector(integers, vb);
    sums += integers;
  }
  int sum = 0;
  for (int i = 0; i < kLanes; i++) sum += sums[i];
  *block = {finite ? largest / kLevels : __builtin_nanf(""), static_cast<float>(sum)};
}

template <class T>
void quantize_rows(const T* x, int8_t* out, BlockStep* blocks, int num_rows, int k, long x_stride,
                   int num_threads) {
  int num_blocks = (k + kBlock - 1) / kBlock;
  parallel_rows(num_rows, kQuantizeWork * k, num_threads, [=](int begin, int end) {
    for (int row = begin; row < end; row++) {
      for (int b = 0; b < num_blocks; b++) {
        alignas(64) float values[kBlock] = {};
        const T* from = x + row * x_stride + b * kBlock;
        each_vector(min_int(kBlock, k - b * kBlock),
                    [&](int i, int n) { store_upto(values + i, load_upto(from + i, n), n); });
        long index = static_cast<long>(row) * num_blocks + b;
        quantize_block(values, out + index * kBlock, blocks + index);
      }
    }
  });
}

// Sizes of a packed weight, in lanes.
struct Int4Sizes {
  int num_groups, blocks_per_group;
  bool has_zeros;

  Int4Sizes(int k, int group, bool zeros)
      : num_groups((k + group - 1) / group), blocks_per_group(group / kBlock), has_zeros(zeros) {}
  static constexpr long kHalves = kPanel / 2;               // lanes of kPanel halves
  static constexpr long kBlockSize = kBlockSteps * kPanel;  // lanes of a block of weights
  long header() const { return has_zeros ? 2 * kHalves : kHalves; }
  long group() const { return header() + blocks_per_group * kBlockSize; }
  long panel() const { return kPanel + num_groups * group(); }
};

template <class Out>
struct Int4Linear {
  Out* out;
  const int8_t* x;          // [num_rows, num_blocks * kBlock]
  const BlockStep* blocks;  // [num_rows, num_blocks]
  const Lane* packed;
  const float* bias;
  int num_rows, num_columns;
  Int4Sizes sizes;
  long out_stride;
  bool gated;

  const Lane* panel(int index) const { return packed + index * sizes.panel(); }
  int num_blocks() const { return sizes.num_groups * sizes.blocks_per_group; }

  // Adds a block's products with kRows rows to their sums. Unpacks its weights once for all rows.
  template <int kRows, bool kFetch>
  static void add_block(const Lane* weights, const Lane* lanes, long x_stride,
                        const BlockStep* steps, long steps_stride, const vf* scales,
                        const vf* zeros, float* sums, const char* fetch) {
    vi totals[kRows][kTileVectors] = {};
    for (int step = 0; step < kBlockSteps; step++) {
      vi low[kTileVectors], high[kTileVectors];
      for (int j = 0; j < kTileVectors; j++) {
        vi both = reinterpret_cast<vi>(
            load(reinterpret_cast<const float*>(weights + step * kPanel) + j * kLanes));
        if constexpr (kFetch) prefetch(fetch + 4L * (step * kPanel + j * kLanes));
        low[j] = both & 0x0f0f0f0f;
        high[j] = (both >> 4) & 0x0f0f0f0f;
      }
      for (int row = 0; row < kRows; row++) {
        const Lane* left = lanes + row * x_stride + 2 * step;
        for (int j = 0; j < kTileVectors; j++)
          totals[row][j] = Int4Quad::add(totals[row][j], low[j], left[0]);
        for (int j = 0; j < kTileVectors; j++)
          totals[row][j] = Int4Quad::add(totals[row][j], high[j], left[1]);
      }
    }
    for (int row = 0; row < kRows; row++) {
      BlockStep block = steps[row * steps_stride];
      for (int j = 0; j < kTileVectors; j++) {
        vf total = __builtin_convertvector(Int4Quad::total(totals[row][j]), vf);
        float* sum = sums + row * kPanel + j * kLanes;
        store(sum, load(sum) + (total - zeros[j] * block.sum) * (scales[j] * block.step));
      }
    }
  }

  // Adds the products of a panel with kRows rows.
  template <int kRows, bool kFetch>
  void multiply_rows(const Lane* from, const Lane* next, int first_row, float* sums) const {
    const Lane* lanes = reinterpret_cast<const Lane*>(x) +
                        static_cast<long>(first_row) * num_blocks() * kBlockLanes;
    const BlockStep* steps = blocks + static_cast<long>(first_row) * num_blocks();
    const char* fetch = reinterpret_cast<const char*>(next);
    long x_stride = static_cast<long>(num_blocks()) * kBlockLanes;
    vf scales[kTileVectors], zeros[kTileVectors];
    for (int j = 0; j < kTileVectors; j++) zeros[j] = splat(static_cast<float>(kStoredZero));
    const Lane* weights = from + kPanel;
    int block = 0;
    for (int group = 0; group < sizes.num_groups; group++) {
      const fp16* halves = reinterpret_cast<const fp16*>(weights);
      for (int j = 0; j < kTileVectors; j++) {
        scales[j] = load(halves + j * kLanes);
        if (sizes.has_zeros) zeros[j] = load(halves + kPanel + j * kLanes);
      }
      weights += sizes.header();
      for (int i = 0; i < sizes.blocks_per_group; i++, block++) {
        add_block<kRows, kFetch>(weights, lanes + block * kBlockLanes, x_stride, steps + block,
                                 num_blocks(), scales, zeros, sums, fetch + 4 * (weights - from));
        weights += Int4Sizes::kBlockSize;
      }
    }
  }

  // Picks the instance for 1 to kTileRows rows.
  template <bool kFetch, int kRows = kTileRows>
  void multiply_tile(const Lane* from, const Lane* next, int first_row, int rows,
                     float* sums) const {
    if constexpr (kRows > 1) {
      if (rows < kRows) {
        multiply_tile<kFetch, kRows - 1>(from, next, first_row, rows, sums);
        return;
      }
    }
    multiply_rows<kRows, kFetch>(from, next, first_row, sums);
  }

  // sums[rows, kPanel] = the rows times a panel, without its units. The first rows of several fetch
  // the panel that comes next; a single row waits for memory in any case.
  void multiply(int index, int next, int first_row, int rows, float* sums) const {
    std::memset(sums, 0, sizeof(float) * static_cast<size_t>(rows) * kPanel);
    for (int row = 0; row < rows; row += kTileRows) {
      int count = min_int(rows - row, kTileRows);
      if (row == 0 && rows > 1)
        multiply_tile<true>(panel(index), panel(next), first_row, count, sums);
      else
        multiply_tile<false>(panel(index), panel(next), first_row + row, count,
                             sums + row * kPanel);
    }
  }

  vf value(int index, const float* sums, int row, int i) const {
    vf units = load(reinterpret_cast<const float*>(panel(index)) + i);
    vf y = load(sums + row * kPanel + i) * units;
    return bias == nullptr ? y : y + load(bias + index * kPanel + i);
  }

  void run(int num_threads) const {
    if (num_rows == 0) return;
    int panels = (num_columns + kPanel - 1) / kPanel;
    RowBlocks row_blocks = split_rows(num_rows, panels, num_threads);
    parallel_for(panels * row_blocks.count, num_threads, [&](int index) {
      alignas(64) float sums[kMaxBlockRows * kPanel], ups[kMaxBlockRows * kPanel];
      PanelTask task = panel_task(index, row_blocks, num_rows, panels, num_threads);
      int at = task.panel, up = at + panels, first_row = task.first_row, column = at * kPanel;
      multiply(at, gated ? up : task.next_panel, first_row, task.rows, sums);
      if (gated) multiply(up, task.next_panel, first_row, task.rows, ups);
      store_rows(
          out + first_row * out_stride + column, out_stride, task.rows,
          min_int(kPanel, num_columns - column), gated,
          [&](int row, int i) { return value(at, sums, row, i); },
          [&](int row, int i) { return value(up, ups, row, i); });
    });
  }
};

// Returns the power of two by which a column's largest scale is at least 1 and less than 2.
inline float unit_of(const float* scales, int count) {
  float most = 0.0f;
  for (int i = 0; i < count; i++) most = std::fabs(scales[i]) > most ? std::fabs(scales[i]) : most;
  return most == 0.0f ? 1.0f : std::ldexp(1.0f, std::ilogb(most));
}

inline void store_half(fp16* to, float value) { store_part(to, splat(value), 1); }

// Packs q [num_columns, k], scales and zeros [num_columns, groups]; zeros may be null. Columns and
// inputs past the last are zeros.
void pack(const uint8_t* q, const float* scales, const float* zeros, Lane* packed, int num_columns,
          int k, int group, int num_threads) {
  Int4Sizes sizes(k, group, zeros != nullptr);
  int panels = (num_columns + kPanel - 1) / kPanel;
  parallel_for(panels, num_threads, [=](int index) {
    Lane* panel = packed + index * sizes.panel();
    std::memset(panel, 0, sizeof(Lane) * static_cast<size_t>(sizes.panel()));
    for (int column = 0; column < min_int(kPanel, num_columns - index * kPanel); column++) {
      long row = static_cast<long>(index) * kPanel + column;
      const float* of_groups = scales + row * sizes.num_groups;
      float unit = unit_of(of_groups, sizes.num_groups);
      reinterpret_cast<float*>(panel)[column] = unit;
      for (int g = 0; g < sizes.num_groups; g++) {
        Lane* at = panel + kPanel + g * sizes.group();
        fp16* halves = reinterpret_cast<fp16*>(at);
        store_half(halves + column, of_groups[g] / unit);
        if (zeros != nullptr)
          store_half(halves + kPanel + column, zeros[row * sizes.num_groups + g]);
        for (int i = 0; i < min_int(group, k - g * group); i++) {
          Lane* lane = at + sizes.header() + i / 8 * kPanel + column;
          int shift = i % 4 * 8 + (i % 8 < 4 ? 0 : 4);
          *lane |= static_cast<Lane>(q[row * k + g * group + i] & 15) << shift;
        }
      }
    }
  });
}

}  // namespace

BM_EXPORT long bm_int4_packed_lanes(int num_columns, int k, int group, int has_zeros) {
  return (num_columns + kPanel - 1) / kPanel * Int4Sizes(k, group, has_zeros != 0).panel();
}

BM_EXPORT void bm_int4_pack(const void* q, const float* scales, const float* zeros, void* packed,
                            int num_columns, int k, int group, int num_threads) {
  pack(static_cast<const uint8_t*>(q), scales, zeros, static_cast<Lane*>(packed), num_columns, k,
       group, num_threads);
}

BM_EXPORT void bm_int4_quantize(const void* x, void* out, float* blocks, int num_rows, int k,
                                long x_stride, int dtype, int num_threads) {
  with_dtype(dtype, [=](auto zero) {
    quantize_rows(static_cast<const decltype(zero)*>(x), static_cast<int8_t*>(out),
                  reinterpret_cast<BlockStep*>(blocks), num_rows, k, x_stride, num_threads);
  });
}

BM_EXPORT void bm_int4_linear(void* out, const void* x, const float* blocks, const void* packed,
                              const float* bias, int num_rows, int num_columns, int k, int group,
                              int has_zeros, long out_stride, int gated, int out_dtype,
                              int num_threads) {
  with_dtype(out_dtype, [=](auto zero) {
    typedef decltype(zero) Out;
    Int4Linear<Out>{static_cast<Out*>(out),
                    static_cast<const int8_t*>(x),
                    reinterpret_cast<const BlockStep*>(blocks),
                    static_cast<const Lane*>(packed),
                    bias,
                    num_rows,
                    num_columns,
                    Int4Sizes(k, group, has_zeros != 0),
                    out_stride,
                    gated != 0}
        .run(num_threads);
  });
}

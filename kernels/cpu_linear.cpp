// y = x W^T + b on weights packed once, with the activation of a gated MLP folded in where wanted.
//
// A panel holds kPanel output columns, [k lanes][kPanel], so the register tile reads weights as one
// stream. A task is a panel times a block of rows; a panel is cut along k into slices that stay in
// the second-level cache while all rows of the block pass over them.
#include "cpu_ops.h"
#include "cpu_tile.h"

namespace {

constexpr int kPanel = kTileVectors * kLanes;
constexpr int kSliceLanes = 512;  // times kPanel lanes: 128 KiB, within a second-level cache
constexpr int kMaxBlockRows = 16 * kTileRows;

template <class In, class Out>
struct Linear {
  Out* out;
  const In* x;
  const Lane* weight;
  const float* bias;  // null, or a float for every packed column
  int num_rows, k_lanes, num_columns;
  long x_stride, out_stride;  // lanes; elements
  bool gated;  // as many panels again follow, and out = silu(gate) * up
};

template <class Mul, class In, class Out>
void multiply_panel(const Linear<In, Out>& op, int panel, int first_row, int rows, float* sums) {
  if (op.bias != nullptr) {
    for (int row = 0; row < rows; row++)
      std::memcpy(sums + row * kPanel, op.bias + panel * kPanel, sizeof(float) * kPanel);
  }
  const Lane* x = reinterpret_cast<const Lane*>(op.x) + first_row * op.x_stride;
  const Lane* weight = op.weight + static_cast<long>(panel) * op.k_lanes * kPanel;
  for (int k = 0; k < op.k_lanes; k += kSliceLanes) {
    bool add = k > 0 || op.bias != nullptr;
    multiply_columns<Mul>(kTileVectors, rows, x + k, op.x_stride, weight + k * kPanel, kPanel,
                          min_int(kSliceLanes, op.k_lanes - k), sums, kPanel, add);
  }
}

template <class In, class Out>
void store_rows(const Linear<In, Out>& op, int column, int count, int first_row, int rows,
                const float* sums, const float* ups) {
  for (int row = 0; row < rows; row++) {
    Out* to = op.out + (first_row + row) * op.out_stride + column;
    const float* sum = sums + row * kPanel;
    const float* up = ups + row * kPanel;
    each_vector(count, [&](int i, int n) {
      vf y = load(sum + i);
      if (op.gated) y = y / (exp(-y) + 1.0f) * load(up + i);
      store_upto(to + i, y, n);
    });
  }
}

template <class Mul, class In, class Out>
void linear(const Linear<In, Out>& op, int num_threads) {
  if (op.num_rows == 0) return;
  int panels = (op.num_columns + kPanel - 1) / kPanel;
  // Enough tasks to even out the threads, as long as a block of rows still amortises its panel.
  int blocks = (op.num_rows + kMaxBlockRows - 1) / kMaxBlockRows;
  while (panels * blocks < 8 * num_threads && op.num_rows / (blocks + 1) >= 4 * kTileRows) blocks++;
  int block_rows = round_up((op.num_rows + blocks - 1) / blocks, kTileRows);
  blocks = (op.num_rows + block_rows - 1) / block_rows;
  parallel_for(panels * blocks, num_threads, [&](int task) {
    alignas(64) float sums[kMaxBlockRows * kPanel], ups[kMaxBlockRows * kPanel];
    int panel = task / blocks, first_row = task % blocks * block_rows;
    int rows = min_int(block_rows, op.num_rows - first_row);
    multiply_panel<Mul>(op, panel, first_row, rows, sums);
    if (op.gated) multiply_panel<Mul>(op, panel + panels, first_row, rows, ups);
    store_rows(op, panel * kPanel, min_int(kPanel, op.num_columns - panel * kPanel), first_row,
               rows, sums, ups);
  });
}

// weight [num_columns, k] to panels; columns past the last are zeros.
template <class Mul, class T>
void pack(const T* weight, Lane* packed, int num_columns, int k, int num_threads) {
  int panels = (num_columns + kPanel - 1) / kPanel, k_lanes = k / Mul::kPerLane;
  parallel_for(panels, num_threads, [=](int panel) {
    Lane* to = packed + static_cast<long>(panel) * k_lanes * kPanel;
    for (int first = 0; first < kPanel; first += kLanes) {
      const void* rows[kLanes] = {};
      for (int i = 0; i < kLanes; i++) {
        long column = static_cast<long>(panel) * kPanel + first + i;
        if (column < num_columns) rows[i] = weight + column * k;
      }
      transpose_rows(rows, static_cast<int>(sizeof(T)) * k, to + first, kPanel);
    }
  });
}

}  // namespace

BM_EXPORT long bm_linear_packed_lanes(int num_columns, int k, int dtype) {
  int per_lane = dtype == 0 ? 1 : dtype == 1 ? MulBf16::kPerLane : 0;
  if (per_lane == 0 || (dtype == 1 && per_lane == 1) || k % per_lane != 0) return 0;
  return static_cast<long>(round_up(num_columns, kPanel)) * (k / per_lane);
}

BM_EXPORT void bm_linear_pack(const void* weight, void* packed, int num_columns, int k, int dtype,
                              int num_threads) {
  Lane* to = static_cast<Lane*>(packed);
  if (dtype == 0)
    pack<Float>(static_cast<const float*>(weight), to, num_columns, k, num_threads);
#if defined(__AVX512BF16__)
  else
    pack<Bf16Pair>(static_cast<const bf16*>(weight), to, num_columns, k, num_threads);
#endif
}

BM_EXPORT void bm_linear(void* out, const void* x, const void* packed, const float* bias,
                         int num_rows, int num_columns, int k, long x_stride, long out_stride,
                         int gated, int float_out, int dtype, int num_threads) {
  const Lane* weight = static_cast<const Lane*>(packed);
  auto run = [&](auto mul, auto in, auto result) {
    typedef decltype(mul) Mul;
    typedef decltype(in) In;
    typedef decltype(result) Out;
    Linear<In, Out> op{static_cast<Out*>(out), static_cast<const In*>(x), weight, bias, num_rows,
                       k / Mul::kPerLane, num_columns, x_stride / Mul::kPerLane, out_stride,
                       gated != 0};
    linear<Mul>(op, num_threads);
  };
  if (dtype == 0) run(Float{}, float{}, float{});
#if defined(__AVX512BF16__)
  else if (float_out) run(Bf16Pair{}, bf16{}, float{});
  else run(Bf16Pair{}, bf16{}, bf16{});
#else
  (void)float_out;
#endif
}

BM_EXPORT int bm_linear_panel() { return kPanel; }

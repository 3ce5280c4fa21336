// y = x W^T + b with packed weights, optionally fused with the activation of a gated MLP.
#include "linear.h"

#include "ops.h"

namespace {

template <class In, class Out>
struct Linear {
  Out* out;
  const In* x;
  const Lane* weight;
  const float* bias;  // null, or one float per packed column
  int num_rows, k_lanes, num_columns;
  long x_stride, out_stride;  // lanes; elements
  bool gated;                 // the same number of panels follows: out = silu(gate) * up
};

template <class Mul, class In, class Out>
void add_panel(const Linear<In, Out>& op, int panel, int next, int first_row, int rows,
               float* sums) {
  if (op.bias != nullptr) {
    for (int row = 0; row < rows; row++)
      std::memcpy(sums + row * kPanel, op.bias + panel * kPanel, sizeof(float) * kPanel);
  }
  long panel_lanes = static_cast<long>(op.k_lanes) * kPanel;
  multiply_panel<Mul>(reinterpret_cast<const Lane*>(op.x) + first_row * op.x_stride, op.x_stride,
                      op.weight + panel * panel_lanes, op.weight + next * panel_lanes, rows,
                      op.k_lanes, sums, op.bias != nullptr);
}

template <class Mul, class In, class Out>
void linear(const Linear<In, Out>& op, int num_threads) {
  if (op.num_rows == 0) return;
  int panels = (op.num_columns + kPanel - 1) / kPanel;
  RowBlocks blocks = split_rows(op.num_rows, panels, num_threads);
  parallel_for(panels * blocks.count, num_threads, [&](int index) {
    alignas(64) float sums[kMaxBlockRows * kPanel], ups[kMaxBlockRows * kPanel];
    auto [panel, first_row, rows, next] =
        panel_task(index, blocks, op.num_rows, panels, num_threads);
    int column = panel * kPanel, up = panel + panels;
    add_panel<Mul>(op, panel, op.gated ? up : next, first_row, rows, sums);
    if (op.gated) add_panel<Mul>(op, up, next, first_row, rows, ups);
    store_rows(
        op.out + first_row * op.out_stride + column, op.out_stride, rows,
        min_int(kPanel, op.num_columns - column), op.gated,
        [&](int row, int i) { return load(sums + row * kPanel + i); },
        [&](int row, int i) { return load(ups + row * kPanel + i); });
  });
}

// Packs weight [num_columns, k] into panels; columns past the last are zeros.
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
  if (dtype == 0) pack<Float>(static_cast<const float*>(weight), to, num_columns, k, num_threads);
#if defined(__AVX512BF16__)
  else pack<Bf16Pair>(static_cast<const bf16*>(weight), to, num_columns, k, num_threads);
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
    Linear<In, Out> op{static_cast<Out*>(out),
                       static_cast<const In*>(x),
                       weight,
                       bias,
                       num_rows,
                       k / Mul::kPerLane,
                       num_columns,
                       x_stride / Mul::kPerLane,
                       out_stride,
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

// What the packed matrix products have in common: panels, how work is split, how results are stored.
//
// A panel holds kPanel output columns, [k lanes][kPanel], so the register tile reads weights as one
// stream. A task is a panel times a block of rows; a panel is cut along k into slices that stay in
// the second-level cache while all rows of the block pass over them.
#pragma once

#include "cpu_tile.h"

namespace {

constexpr int kPanel = kTileVectors * kLanes;
constexpr int kSliceLanes = 512;  // times kPanel lanes: 128 KiB, within a second-level cache
constexpr int kMaxBlockRows = 16 * kTileRows;

struct RowBlocks {
  int count, rows;
};

// Enough tasks to even out the threads, as long as a block of rows still amortises its panel.
inline RowBlocks split_rows(int num_rows, int panels, int num_threads) {
  int blocks = (num_rows + kMaxBlockRows - 1) / kMaxBlockRows;
  while (panels * blocks < 8 * num_threads && num_rows / (blocks + 1) >= 4 * kTileRows) blocks++;
  int rows = round_up((num_rows + blocks - 1) / blocks, kTileRows);
  return {(num_rows + rows - 1) / rows, rows};
}

// sums[rows, kPanel] (+)= x[rows, k_lanes] times a panel.
template <class Mul>
inline void multiply_panel(const Lane* x, long x_stride, const Lane* panel, int rows, int k_lanes,
                           float* sums, bool add) {
  for (int k = 0; k < k_lanes; k += kSliceLanes)
    multiply_columns<Mul>(kTileVectors, rows, x + k, x_stride, panel + k * kPanel, kPanel,
                          min_int(kSliceLanes, k_lanes - k), sums, kPanel, add || k > 0);
}

// out[row, i] = gate(row, i), or silu(gate(row, i)) * up(row, i), for count columns of each row.
template <class Out, class Gate, class Up>
inline void store_rows(Out* out, long out_stride, int rows, int count, bool gated, Gate gate,
                       Up up) {
  for (int row = 0; row < rows; row++, out += out_stride) {
    each_vector(count, [&](int i, int n) {
      vf y = gate(row, i);
      if (gated) y = y / (exp(-y) + 1.0f) * up(row, i);
      store_upto(out + i, y, n);
    });
  }
}

}  // namespace

// Parts shared by the packed matrix products: panels, division of the work, storing of results.
//
// A panel holds kPanel output columns, [k lanes][kPanel], so the register tile reads weights as one
// stream. A task is a panel times a block of rows; a panel is divided along k into slices that stay
// in the second-level cache while all rows of the block pass over them. The next panel is
// prefetched meanwhile: a thread that waits for each panel's first pass loses a fifth of its time
// at 64 rows.
#pragma once

#include "tile.h"

namespace {

constexpr int kPanel = kTileVectors * kLanes;
constexpr int kSliceLanes = 512;  // times kPanel lanes: 128 KiB, within a second-level cache
constexpr int kMaxBlockRows = 16 * kTileRows;

struct RowBlocks {
  int count, rows;
};

// Makes enough tasks to balance the threads, as long as a block of rows still amortises its panel.
inline RowBlocks split_rows(int num_rows, int panels, int num_threads) {
  int blocks = (num_rows + kMaxBlockRows - 1) / kMaxBlockRows;
  while (panels * blocks < 8 * num_threads && num_rows / (blocks + 1) >= 4 * kTileRows) blocks++;
  int rows = round_up((num_rows + blocks - 1) / blocks, kTileRows);
  return {(num_rows + rows - 1) / rows, rows};
}

struct PanelTask {
  int panel, first_row, rows;
  int next_panel;  // that this thread probably multiplies next; at the end the same one
};

inline PanelTask panel_task(int index, const RowBlocks& blocks, int num_rows, int panels,
                            int num_threads) {
  int panel = index / blocks.count, first_row = index % blocks.count * blocks.rows;
  int next = (index + num_threads) / blocks.count;
  return {panel, first_row, min_int(blocks.rows, num_rows - first_row),
          next < panels ? next : panel};
}

// Passes over a panel with one register tile of rows at a time. Prefetches kFetch lines of the next
// panel per step of a pass, until the whole panel is fetched.
template <class Mul, int kFetch>
inline void pass_over_panel(const Lane* x, long x_stride, const Lane* panel, const Lane* next,
                            int rows, int k_lanes, float* sums, bool add) {
  const char* fetch = reinterpret_cast<const char*>(next);
  const char* end = reinterpret_cast<const char*>(next + static_cast<long>(k_lanes) * kPanel);
  for (int k = 0; k < k_lanes; k += kSliceLanes) {
    int lanes = min_int(kSliceLanes, k_lanes - k);
    for (int row = 0; row < rows; row += kTileRows, fetch += 64L * kFetch * lanes) {
      auto multiply = fetch < end ? multiply_rows<Mul, kTileVectors, kFetch>
                                  : multiply_rows<Mul, kTileVectors, 0>;
      multiply(min_int(rows - row, kTileRows), x + k + row * x_stride, x_stride, panel + k * kPanel,
               kPanel, lanes, sums + row * kPanel, kPanel, add || k > 0, fetch);
    }
  }
}

// sums[rows, kPanel] (+)= x[rows, k_lanes] times a panel. A step reads four lines of it: the fewer
// passes there are, the more of the next panel each must fetch. A single row waits for memory in
// any case.
template <class Mul>
inline void multiply_panel(const Lane* x, long x_stride, const Lane* panel, const Lane* next,
                           int rows, int k_lanes, float* sums, bool add) {
  int passes = (rows + kTileRows - 1) / kTileRows;
  auto pass = passes >= 3   ? pass_over_panel<Mul, 1>
              : passes == 2 ? pass_over_panel<Mul, 2>
              : rows > 1    ? pass_over_panel<Mul, 4>
                            : pass_over_panel<Mul, 0>;
  pass(x, x_stride, panel, next, rows, k_lanes, sums, add);
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

// What LoRA adapters add to a matrix product, for rows grouped by adapter.
//
// Two regions: every group's products with its first factors go to a buffer of floats, then every
// group's products with its second factors are added to the result. A region covers all groups and
// all parts of a fused matrix, so a step waits twice per matrix, however many adapters it has.
// The factors are read in the layout of the files: for the few rows of a decode step the time is
// that of reading them once, so that packing them would gain nothing.
//
// Source: LoRA, Hu et al. 2021; the two grouped products: Punica, Chen et al. 2023, section 4.
#include "lora.h"

#include <type_traits>
#include <vector>

#include "ops.h"
#include "vec.h"

namespace {

#if defined(__AVX512F__)
constexpr int kSums = 16;  // registers for the sums of a tile
#else
constexpr int kSums = 8;
#endif
constexpr int kRows = 4;          // of a tile
constexpr int kColumns = 256;     // of a task of the second region
constexpr long kMinWork = 32768;  // multiplications; less is not worth waking threads

template <class T, class Out>
struct Lora {
  Out* out;
  const T* x;
  const BmLoraRows* groups;
  int num_groups;
  const int* widths;
  int num_parts, in;
  long out_stride;
  float* low;  // [rows of all groups, stride]
  long low_stride;
};

// low[row, j] = x[row] . down[j] for kR rows and kF factors.
template <int kR, int kF, class T>
void dot_tile(const T* const* x, const T* down, int k, float* low, long low_stride) {
  vf sums[kR][kF] = {};
  each_vector(k, [&](int i, int n) {
    vf rows[kR];
    for (int r = 0; r < kR; r++) rows[r] = load_upto(x[r] + i, n);
    for (int f = 0; f < kF; f++) {
      vf factor = load_upto(down + static_cast<long>(f) * k + i, n);
      for (int r = 0; r < kR; r++) sums[r][f] += rows[r] * factor;
    }
  });
  for (int r = 0; r < kR; r++)
    for (int f = 0; f < kF; f++) low[r * low_stride + f] = reduce_add(sums[r][f]);
}

template <int kR, class T>
void dot_rows(const T* const* x, const T* down, int num_factors, int k, float* low,
              long low_stride) {
  constexpr int kF = kSums / kR;
  int f = 0;
  for (; f + kF <= num_factors; f += kF)
    dot_tile<kR, kF>(x, down + static_cast<long>(f) * k, k, low + f, low_stride);
  for (; f < num_factors; f++)
    dot_tile<kR, 1>(x, down + static_cast<long>(f) * k, k, low + f, low_stride);
}

// to[row, i] += sum over j of low[row, j] * up[j, i] for kR rows and count columns.
template <int kR, class T, class Out>
void add_tile(Out* const* to, const float* low, long low_stride, const T* up, long up_stride,
              int rank, int count) {
  constexpr int kV = kSums / kR;
  auto add = [&](int i, auto vectors) {
    constexpr int kN = decltype(vectors)::value;
    vf sums[kR][kN];
    for (int r = 0; r < kR; r++)
      for (int v = 0; v < kN; v++) sums[r][v] = load(to[r] + i + v * kLanes);
    for (int j = 0; j < rank; j++) {
      vf column[kN];
      for (int v = 0; v < kN; v++) column[v] = load(up + j * up_stride + i + v * kLanes);
      for (int r = 0; r < kR; r++) {
        float factor = low[r * low_stride + j];
        for (int v = 0; v < kN; v++) sums[r][v] += factor * column[v];
      }
    }
    for (int r = 0; r < kR; r++)
      for (int v = 0; v < kN; v++) store(to[r] + i + v * kLanes, sums[r][v]);
  };
  int i = 0;
  for (; i + kV * kLanes <= count; i += kV * kLanes) add(i, std::integral_constant<int, kV>{});
  for (; i + kLanes <= count; i += kLanes) add(i, std::integral_constant<int, 1>{});
  if (i == count) return;
  for (int r = 0; r < kR; r++) {
    vf sum = load_part(to[r] + i, count - i);
    for (int j = 0; j < rank; j++)
      sum += low[r * low_stride + j] * load_part(up + j * up_stride + i, count - i);
    store_part(to[r] + i, sum, count - i);
  }
}

// Calls body(row, std::integral_constant of the tile's rows) for tiles of rows in [begin, end).
template <class Body>
void each_tile(int begin, int end, Body body) {
  int row = begin;
  for (; row + kRows <= end; row += kRows) body(row, std::integral_constant<int, kRows>{});
  for (; row + 2 <= end; row += 2) body(row, std::integral_constant<int, 2>{});
  if (row < end) body(row, std::integral_constant<int, 1>{});
}

// Divides [0, count) among blocks.
struct Block {
  int begin, end;
};
inline Block block_of(int index, int blocks, int count, int multiple) {
  int units = (count + multiple - 1) / multiple;
  return {
      static_cast<int>(static_cast<long>(units) * index / blocks) * multiple,
      min_int(static_cast<int>(static_cast<long>(units) * (index + 1) / blocks) * multiple, count)};
}

// Tasks of a region: every group has blocks of rows times pieces of its columns.
template <class Body>
void run_region(const BmLoraRows* groups, int num_groups, long work, int pieces, int num_threads,
                Body body) {
  long total_rows = 0;
  for (int g = 0; g < num_groups; g++) total_rows += groups[g].num_rows;
  int threads = work < kMinWork ? 1 : num_threads;
  // About four tasks for a thread; a block of rows shares what it reads of the factors.
  int wanted = threads == 1 ? 1 : max_int(1, 4 * threads / max_int(1, num_groups * pieces));
  int row_blocks = max_int(wanted, static_cast<int>((total_rows / num_groups + 63) / 64));
  parallel_for(num_groups * row_blocks * pieces, threads, [&](int task) {
    int group = task / (row_blocks * pieces), rest = task % (row_blocks * pieces);
    Block rows =
        block_of(rest / pieces, row_blocks, static_cast<int>(groups[group].num_rows), kRows);
    if (rows.begin < rows.end) body(group, rows, rest % pieces);
  });
}

template <class T, class Out>
void shrink(const Lora<T, Out>& op, const long* first_rows, int pieces, long work,
            int num_threads) {
  run_region(
      op.groups, op.num_groups, work, pieces, num_threads, [&](int index, Block rows, int piece) {
        const BmLoraRows& group = op.groups[index];
        Block factors = block_of(piece, pieces, group.pair->num_parts * group.pair->rank, kSums);
        const T* down =
            static_cast<const T*>(group.pair->down) + static_cast<long>(factors.begin) * op.in;
        each_tile(rows.begin, rows.end, [&](int row, auto count) {
          constexpr int kR = decltype(count)::value;
          const T* x[kR];
          for (int r = 0; r < kR; r++) x[r] = op.x + group.rows[row + r] * op.in;
          dot_rows<kR>(x, down, factors.end - factors.begin, op.in,
                       op.low + (first_rows[index] + row) * op.low_stride + factors.begin,
                       op.low_stride);
        });
      });
}

template <class T, class Out>
void expand(const Lora<T, Out>& op, const long* first_rows, int total_width, long work,
            int num_threads) {
  int pieces = 0;
  for (int part = 0; part < op.num_parts; part++)
    pieces += (op.widths[part] + kColumns - 1) / kColumns;
  run_region(
      op.groups, op.num_groups, work, pieces, num_threads, [&](int index, Block rows, int piece) {
        const BmLoraRows& group = op.groups[index];
        int rank = group.pair->rank, part = 0, start = 0;
        for (int left; (left = (op.widths[part] + kColumns - 1) / kColumns) <= piece; part++) {
          piece -= left;
          start += op.widths[part];
        }
        int first_factor = group.pair->num_parts == 1 ? 0 : part * rank;
        int column = start + piece * kColumns;
        int count = min_int(kColumns, start + op.widths[part] - column);
        const T* up = static_cast<const T*>(group.pair->up) + column;
        each_tile(rows.begin, rows.end, [&](int row, auto num) {
          constexpr int kR = decltype(num)::value;
          Out* to[kR];
          for (int r = 0; r < kR; r++)
            to[r] = op.out + group.rows[row + r] * op.out_stride + column;
          add_tile<kR>(to, op.low + (first_rows[index] + row) * op.low_stride + first_factor,
                       op.low_stride, up, total_width, rank, count);
        });
      });
}

template <class T, class Out>
void add_lora(Lora<T, Out> op, int num_threads) {
  std::vector<long> first_rows;
  long num_rows = 0, total_width = 0, widest = 0, shrink_work = 0, expand_work = 0;
  for (int part = 0; part < op.num_parts; part++) total_width += op.widths[part];
  for (int g = 0; g < op.num_groups; g++) {
    const BmLoraRows& group = op.groups[g];
    first_rows.push_back(num_rows);
    num_rows += group.num_rows;
    long num_factors = static_cast<long>(group.pair->num_parts) * group.pair->rank;
    widest = num_factors > widest ? num_factors : widest;
    shrink_work += group.num_rows * num_factors * op.in;
    expand_work += group.num_rows * group.pair->rank * total_width;
  }
  if (num_rows == 0) return;
  op.low_stride = widest;
  std::vector<float> low(static_cast<size_t>(num_rows * widest));
  op.low = low.data();
  int pieces = static_cast<int>((widest + kSums - 1) / kSums);
  shrink(op, first_rows.data(), pieces, shrink_work, num_threads);
  expand(op, first_rows.data(), static_cast<int>(total_width), expand_work, num_threads);
}

}  // namespace

BM_EXPORT void bm_add_lora(void* out, const void* x, const BmLoraRows* groups, int num_groups,
                           const int* widths, int num_parts, int in, long out_stride, int dtype,
                           int float_out, int num_threads) {
  with_dtype(dtype, [&](auto zero) {
    typedef decltype(zero) T;
    auto run = [&](auto result) {
      typedef decltype(result) Out;
      add_lora(Lora<T, Out>{static_cast<Out*>(out), static_cast<const T*>(x), groups, num_groups,
                            widths, num_parts, in, out_stride, nullptr, 0},
               num_threads);
    };
    if (float_out) run(float{});
    else run(zero);
  });
}

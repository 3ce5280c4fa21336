// Attention over a paged KV cache: decode and chunked prefill in one kernel.
//
// The query rows of one kv head, (position, head of its group) flattened, form the left operand, so
// a decode step with 3 heads per group and a 16-token prefill chunk are the same kind of work. Keys
// are read in tiles and added to a running softmax (softmax.h). For many rows a tile is packed for
// the register tile (keys transposed, values interleaved); for few rows it is read in place
// (attention_direct.h). If a row's keys are spread over several tasks (attention_plan.h), the task
// that finishes last merges the results.
//
// Source: Dao 2023, "FlashAttention-2" (running softmax); Kwon et al. 2023,
// "PagedAttention" (block tables).
#include <cmath>
#include <cstdlib>
#include <utility>
#include <vector>

#include "attention_direct.h"
#include "attention_merge.h"
#include "attention_plan.h"
#include "ops.h"
#include "softmax.h"

namespace {

struct Scratch {
  char* memory = nullptr;
  size_t capacity = 0;
  ~Scratch() { std::free(memory); }
  char* reserve(size_t bytes) {
    if (bytes > capacity) {
      std::free(memory);
      capacity = (bytes + 63) / 64 * 64;
      memory = static_cast<char*>(std::aligned_alloc(64, capacity));
      if (memory == nullptr) std::abort();
    }
    return memory;
  }
};

template <class T>
struct Operand {  // the type that the register tile multiplies for this cache type
  typedef Float Mul;
};
template <>
struct Operand<bf16> {
  typedef MulBf16 Mul;
};

template <class T>
class Worker {
 public:
  typedef typename Operand<T>::Mul Mul;
  typedef typename Mul::Element Element;

  Worker(const Attention& op, Scratch& scratch) : op_(op), scale_(op.scale * kLog2E) {
    group_ = op.group();
    query_lanes_ = (op.head_dim + Mul::kPerLane - 1) / Mul::kPerLane;
    value_width_ = value_width(op);
    head_bytes_ = static_cast<long>(sizeof(T)) * op.head_dim;
    size_t heads = static_cast<size_t>(op.num_kv_heads);
    size_t queries = round_up(kMaxRows * query_lanes_, 16) * heads;
    size_t sums = static_cast<size_t>(kMaxRows) * value_width_ * heads;
    size_t keys = static_cast<size_t>(query_lanes_) * kTileKeys;
    size_t values = static_cast<size_t>(value_width_) * kTileKeys;
    size_t widened = static_cast<size_t>(round_up(query_lanes_, 16)) * kLanes;
    size_t maxima = round_up(kMaxRows, 16) * heads, totals = kMaxRows * kLanes * heads;
    size_t lanes = queries + sums + keys + values + widened + maxima + totals +
                   2 * static_cast<size_t>(kMaxRows) * kTileKeys;
    Lane* next = reinterpret_cast<Lane*>(scratch.reserve(lanes * 4));
    auto take = [&](size_t n) { return std::exchange(next, next + n); };
    queries_ = take(queries);
    sums_ = reinterpret_cast<float*>(take(sums));
    keys_ = take(keys);
    values_ = take(values);
    widened_ = reinterpret_cast<float*>(take(widened));
    maxima_ = reinterpret_cast<float*>(take(maxima));
    totals_ = reinterpret_cast<float*>(take(totals));
    scores_ = reinterpret_cast<float*>(take(static_cast<size_t>(kMaxRows) * kTileKeys));
    weights_ = take(static_cast<size_t>(kMaxRows) * kTileKeys);
  }

  // `following` is the task that this thread probably runs next: its first keys are prefetched.
  void run(const Task& task, const Task& following) {
    for (int head = 0; head < task.num_heads; head++) load_queries(task, head);
    find_rows(task, task.first_key, rows_);
    for (int key = task.first_key; key < task.end_key; key += kTileKeys) {
      bool is_last = key + kTileKeys >= task.end_key;
      find_rows(is_last ? following : task, is_last ? following.first_key : key + kTileKeys,
                next_rows_);
      for (int head = 0; head < task.num_heads; head++)
        attend(task, head, key, min_int(kTileKeys, task.end_key - key));
      std::swap(rows_, next_rows_);
    }
  }

  void write_all(const Task& task) {
    for (int head = 0; head < task.num_heads; head++)
      for (int row = 0; row < task.num_rows; row++)
        write(task.seq, task.first_row + row, task.first_head + head, sums(head, row),
              {maxima(head)[row], total(head, row)});
  }

  void keep_all(const Task& task, PartialResults& partial) {
    for (int head = 0; head < task.num_heads; head++)
      for (int row = 0; row < task.num_rows; row++)
        partial.keep(task, head, row, maxima(head)[row], total(head, row), sums(head, row));
  }

  void write_merged(int index, const Merge& merge, const PartialResults& partial) {
    for (int head = 0; head < op_.num_kv_heads; head++)
      for (int row = 0; row < merge.num_rows; row++) {
        PartialResults::Sum sum = partial.add_up(index, head, row, sums_);
        write(merge.seq, merge.first_row + row, head, sums_, sum);
      }
  }

  static int value_width(const Attention& op) {
    return round_up(op.head_dim, kLanes * Mul::kPerLane);
  }

 private:
  float* sums(int head, int row = 0) {
    return sums_ + (static_cast<size_t>(head) * kMaxRows + row) * value_width_;
  }
  float* maxima(int head) { return maxima_ + head * kMaxRows; }
  float* totals(int head) { return totals_ + head * kMaxRows * kLanes; }  // [row][kLanes]
  float total(int head, int row) { return reduce_add(load(totals(head) + row * kLanes)); }

  // Writes a row of a sequence, (position, head of the group), to its place in out.
  // The sink of its head joins the total here, once for all of its parts.
  void write(int seq, int row, int kv_head, const float* sum, PartialResults::Sum of_keys) {
    T* out = static_cast<T*>(op_.out) +
             (op_.cu_seqlens_q[seq] + row / group_) * op_.out_row_stride +
             (kv_head * group_ + row % group_) * op_.out_head_stride;
    float total = of_keys.total;
    if (op_.sinks != nullptr)
      total += std::exp2(op_.sinks[kv_head * group_ + row % group_] * kLog2E - of_keys.maximum);
    float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    each_vector(op_.head_dim,
                [&](int i, int n) { store_upto(out + i, interleaved<Mul>(sum, i) * inverse, n); });
  }

  void load_queries(const Task& task, int head) {
    Lane* to = queries(head);
    for (int row = 0; row < task.num_rows; row++, to += query_lanes_) {
      int flat = task.first_row + row;
      const T* q = static_cast<const T*>(op_.q) +
                   (op_.cu_seqlens_q[task.seq] + flat / group_) * op_.q_row_stride +
                   ((task.first_head + head) * group_ + flat % group_) * op_.q_head_stride;
      to[query_lanes_ - 1] = 0;  // the second half of the last lane, if head_dim is odd
      copy_row(q, reinterpret_cast<Element*>(to));
      maxima(head)[row] = -INFINITY;
    }
    std::memset(totals(head), 0, sizeof(float) * task.num_rows * kLanes);
    std::memset(sums(head), 0, sizeof(float) * task.num_rows * value_width_);
  }

  void copy_row(const T* from, T* to) { std::memcpy(to, from, sizeof(T) * op_.head_dim); }
  template <class U>
  void copy_row(const U* from, float* to) {
    each_vector(op_.head_dim, [&](int i, int n) { store_upto(to + i, load_upto(from + i, n), n); });
  }

  // Computes the offsets of the rows of the tile at `key` in a cache, in elements. Past the task's
  // last key the last row is repeated, so that reads beyond it hit a row of the sequence.
  void find_rows(const Task& task, int key, long* rows) const {
    const int32_t* table = op_.table(task.seq);
    long row_size = static_cast<long>(op_.num_kv_heads) * op_.head_dim;
    int block = key / op_.block_size, offset = key % op_.block_size;
    int count = min_int(kTileKeys, task.end_key - key);
    for (int i = 0; i < count; block++, offset = 0) {
      long row = (static_cast<long>(table[block]) * op_.block_size + offset) * row_size;
      for (; offset < op_.block_size && i < count; offset++, row += row_size) rows[i++] = row;
    }
    for (int i = count; i < kTileKeys; i++) rows[i] = rows[count - 1];
  }

  // The next tile's rows are scattered, so the hardware prefetcher finds no stream in them. They
  // are loaded one row at a time between the work on this tile's rows: a burst would fill the
  // core's miss buffers and stall it (measured: 2.4 times slower).
  static void prefetch_row(const T* row, long bytes) {
    for (long line = 0; line < bytes; line += 64)
      prefetch(reinterpret_cast<const char*>(row) + line);
  }

  void attend(const Task& task, int head, int key, int count) {
    int kv_head = task.first_head + head;
    int key_vectors = (count + kLanes - 1) / kLanes;
    const T* keys = static_cast<const T*>(op_.k_cache) + kv_head * op_.head_dim;
    const T* values = static_cast<const T*>(op_.v_cache) + kv_head * op_.head_dim;
    bool is_direct = with_direct_tile<T>(task.num_rows, op_.head_dim, [&](auto tile) {
      for (int first = 0; first < count; first += kLanes)
        tile.score(reinterpret_cast<const bf16*>(queries(head)),
                   {reinterpret_cast<const bf16*>(keys), rows_ + first, next_rows_ + first},
                   scores_ + first, kTileKeys);
    });
    if (!is_direct) {
      pack_keys(keys, count);
      multiply<Mul>(task.num_rows, key_vectors, query_lanes_, queries(head), query_lanes_, keys_,
                    kTileKeys, scores_, kTileKeys, false);
    }
    for (int row = 0; row < task.num_rows; row++) {
      int position = op_.first_position(task.seq) + (task.first_row + row) / group_;
      int begin = op_.window > 0 ? max_int(0, position - op_.window + 1 - key) : 0;
      int end = task.is_shared ? count : min_int(count, position + 1 - key);
      weigh_row(head, row, begin, end, key_vectors * kLanes);
    }
    is_direct = with_direct_tile<T>(task.num_rows, op_.head_dim, [&](auto tile) {
      tile.add_values(weights_, kTileKeys / 2,
                      {reinterpret_cast<const bf16*>(values), rows_, next_rows_}, count, sums(head),
                      value_width_);
    });
    if (is_direct) return;
    pack_values(values, count);
    multiply<Mul>(task.num_rows, value_width_ / kLanes, (count + Mul::kPerLane - 1) / Mul::kPerLane,
                  weights_, kTileKeys / Mul::kPerLane, values_, value_width_, sums(head),
                  value_width_, true);
  }

  // Turns one row's scores into weights; keys outside [begin, end) weigh 0.
  void weigh_row(int head, int row, int begin, int end, int width) {
    float* scores = scores_ + row * kTileKeys;
    Element* weights = reinterpret_cast<Element*>(weights_) + row * kTileKeys;
    if (begin >= end) {
      for (int i = 0; i < width; i += kLanes) store(weights + i, vf{});
      return;
    }
    RowState state{maxima(head)[row], totals(head) + row * kLanes};
    float keep = begin == 0 && end == kTileKeys
                     ? weigh<true>(scores, weights, 0, kTileKeys, kTileKeys, scale_, state)
                     : weigh<false>(scores, weights, begin, end, width, scale_, state);
    maxima(head)[row] = state.maximum;
    if (keep == 1.0f) return;
    float* sum = sums(head, row);
    for (int i = 0; i < value_width_; i += kLanes) store(sum + i, load(sum + i) * keep);
  }

  void pack_keys(const T* cache, int count) {
    for (int first = 0; first < count; first += kLanes) {
      const void* rows[kLanes];
      for (int i = 0; i < kLanes; i++) {
        rows[i] = operand_row(cache + rows_[first + i], widened_ + i * round_up(query_lanes_, 16));
        prefetch_row(cache + next_rows_[first + i], head_bytes_);
      }
      transpose_rows(rows, static_cast<int>(sizeof(Element)) * op_.head_dim, keys_ + first,
                     kTileKeys);
    }
  }
  const void* operand_row(const Element* from, float*) { return from; }
  template <class U>
  const void* operand_row(const U* from, float* wide) {
    copy_row(from, wide);
    return wide;
  }

  void pack_values(const T* cache, int count) {
    Lane* to = values_;
    for (int i = 0; i < count; i += Mul::kPerLane, to += value_width_) {
      for (int next = i; next < i + Mul::kPerLane; next++)
        prefetch_row(cache + next_rows_[next], head_bytes_);
      const T* first = cache + rows_[i];
      if constexpr (Mul::kPerLane == 1) {
        float* row = reinterpret_cast<float*>(to);
        each_vector(op_.head_dim, [&](int d, int n) { store(row + d, load_upto(first + d, n)); });
      } else {
        interleave_rows(first, cache + rows_[i + 1], op_.head_dim, to);
      }
    }
  }

  Lane* queries(int head) { return queries_ + static_cast<size_t>(head) * kMaxRows * query_lanes_; }

  const Attention& op_;
  float scale_;  // yields scores whose exponential is 2^score
  int group_, query_lanes_, value_width_;
  Lane *queries_, *keys_, *values_, *weights_;
  float *sums_, *widened_, *maxima_, *totals_, *scores_;
  long head_bytes_, tile_rows_[2][kTileKeys];
  long *rows_ = tile_rows_[0], *next_rows_ = tile_rows_[1];
};

template <class T>
void attention(const Attention& op) {
  Plan plan = Planner(op).plan();
  const std::vector<Task>& tasks = plan.tasks;
  PartialResults partial(op, plan.merges, Worker<T>::value_width(op));
  parallel_for(static_cast<int>(tasks.size()), op.num_threads, [&](int index) {
    static thread_local Scratch scratch;
    const Task& task = tasks[index];
    Worker<T> worker(op, scratch);
    size_t following = static_cast<size_t>(index) + op.num_threads;
    worker.run(task, tasks[following < tasks.size() ? following : index]);
    if (task.first_merge == kNoMerge) {
      worker.write_all(task);
      return;
    }
    worker.keep_all(task, partial);
    partial.finish(task,
                   [&](int merge) { worker.write_merged(merge, plan.merges[merge], partial); });
  });
}

}  // namespace

BM_EXPORT int bm_paged_attention(void* out, const void* q, const void* k_cache, const void* v_cache,
                                 const int32_t* block_tables, const int32_t* cu_seqlens_q,
                                 const int32_t* seq_lens, int num_tokens, int num_seqs,
                                 int num_q_heads, int num_kv_heads, int head_dim, int num_blocks,
                                 int block_size, int max_blocks, long table_stride,
                                 long q_row_stride, long q_head_stride, long out_row_stride,
                                 long out_head_stride, float scale, int window, const float* sinks,
                                 int dtype, int num_threads) {
  Attention op{out,
               q,
               k_cache,
               v_cache,
               block_tables,
               cu_seqlens_q,
               seq_lens,
               num_seqs,
               num_q_heads,
               num_kv_heads,
               head_dim,
               num_blocks,
               block_size,
               table_stride,
               q_row_stride,
               q_head_stride,
               out_row_stride,
               out_head_stride,
               scale,
               window,
               sinks,
               num_threads};
  int invalid = find_invalid_sequence(op, num_tokens, max_blocks);
  if (invalid >= 0) return invalid;
  with_dtype(dtype, [&](auto zero) { attention<decltype(zero)>(op); });
  return -1;
}

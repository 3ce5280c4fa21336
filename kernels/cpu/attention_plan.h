// The arguments of an attention call: their checks, and their division into tasks for the threads.
//
// A prefill is divided by kv head and query rows. A decode step has one task per sequence, over all
// heads, so that a block of the cache is read once and in order; contexts that are too long for
// that are divided into chunks. Neighbours whose block tables begin alike read their shared blocks
// together: one task has the rows of all of them, and each continues alone from there.
//
// Source: Dao et al. 2023, "Flash-Decoding" (split contexts); Juravsky et al. 2024, "Hydragen"
// (attention over a shared prefix apart from the rest).
#pragma once

#include <vector>

#include "tile.h"

namespace {

constexpr int kTileKeys = 64;
constexpr int kMaxRows = 96;  // query rows of a task: 16 register tiles for each packing of a tile
constexpr int kMinChunkKeys = 128;   // shorter chunks cost more to merge than they save
constexpr int kMinSharedKeys = 128;  // shorter prefixes do, too
constexpr int kFewRows = 8;  // a task of at most these is bound by reading: all heads at once
static_assert(kTileKeys % (kTileVectors * kLanes) == 0, "a tile of keys is whole register tiles");

struct Attention {
  void* out;
  const void *q, *k_cache, *v_cache;
  const int32_t *block_tables, *cu_seqlens_q, *seq_lens;
  int num_seqs, num_q_heads, num_kv_heads, head_dim, num_blocks, block_size;
  long table_stride, q_row_stride, q_head_stride, out_row_stride, out_head_stride;
  float scale;
  int window;          // 0 = all earlier keys
  const float* sinks;  // [num_q_heads], or null
  int num_threads;

  int group() const { return num_q_heads / num_kv_heads; }
  int query_len(int seq) const { return cu_seqlens_q[seq + 1] - cu_seqlens_q[seq]; }
  int first_position(int seq) const { return seq_lens[seq] - query_len(seq); }
  const int32_t* table(int seq) const { return block_tables + seq * table_stride; }
};

struct Task {
  int seq, first_row, num_rows;  // rows of (position, head of the group), counted from seq's first
  int first_head, num_heads;     // kv heads
  int first_key, end_key;
  int first_merge, part;  // destination of its results, if first_merge is not kNoMerge
  bool is_shared;         // the rows belong to several sequences and see all keys
};
constexpr int kNoMerge = -1;

// Rows whose keys are spread over several parts. All of their heads are merged at once.
struct Merge {
  int seq, first_row, num_rows, num_parts;
  int num_tasks;  // tasks that must be done first
};

struct Plan {
  std::vector<Task> tasks;
  std::vector<Merge> merges;
};

class Planner {
 public:
  explicit Planner(const Attention& op) : op_(op), group_(op.group()) {
    long keys = 0;  // to be read by tasks that are bound by reading
    for (int seq = 0; seq < op.num_seqs; seq++)
      if (op.query_len(seq) * group_ <= kMaxRows) keys += op.seq_lens[seq];
    chunk_ =
        max_int(kMinChunkKeys, round_up(static_cast<int>(keys / (op.num_threads * 4L)), kTileKeys));
  }

  Plan plan() {
    for (int seq = 0; seq < op_.num_seqs;) {
      int shared_keys = 0, members = find_sharing(seq, &shared_keys);
      if (members > 1) add_shared(seq, members, shared_keys);
      else add_sequence(seq);
      seq += members;
    }
    return std::move(plan_);
  }

 private:
  // Returns how many sequences from `first` on share their first keys; sets the number of keys.
  int find_sharing(int first, int* num_keys) const {
    int seq = first + 1;
    if (op_.window > 0 || op_.query_len(first) != 1 || group_ > kMaxRows) return 1;
    int shared = op_.first_position(first) / op_.block_size;
    for (; seq < op_.num_seqs && op_.query_len(seq) == 1; seq++) {
      int limit = min_int(shared, op_.first_position(seq) / op_.block_size), same = 0;
      while (same < limit && op_.table(seq)[same] == op_.table(first)[same]) same++;
      // A sequence that shares much less would cost the others more than it saves.
      if (same * op_.block_size < kMinSharedKeys || (2 * same < shared && seq > first + 1)) break;
      shared = same;
    }
    *num_keys = shared * op_.block_size;
    return seq - first;
  }

  void add_shared(int first, int members, int num_keys) {
    int rows = members * group_, most = kMaxRows / group_ * group_;
    int num_tiles = (rows + most - 1) / most;
    bool all_heads = rows <= kFewRows;
    int wanted =
        all_heads ? num_keys / chunk_ : 4 * op_.num_threads / (num_tiles * op_.num_kv_heads);
    Chunks chunks = split(0, num_keys, min_int(wanted, num_keys / kMinChunkKeys));
    int first_merge = static_cast<int>(plan_.merges.size());
    int tasks = chunks.count * (all_heads ? 1 : op_.num_kv_heads);
    for (int i = 0; i < members; i++)
      plan_.merges.push_back({first + i, 0, group_, chunks.count, tasks});
    for (int row = 0; row < rows; row += most)
      for (int part = 0; part < chunks.count; part++) {
        Task task{first,
                  row,
                  min_int(most, rows - row),
                  0,
                  op_.num_kv_heads,
                  chunks.begin(part),
                  chunks.end(part),
                  first_merge + row / group_,
                  part,
                  true};
        add_by_head(task, !all_heads);
      }
    for (int i = 0; i < members; i++)
      add_rows({first + i, 0, group_, 0, op_.num_kv_heads, num_keys, op_.seq_lens[first + i],
                first_merge + i, 0, false});
  }

  void add_sequence(int seq) {
    int rows = op_.query_len(seq) * group_, first_position = op_.first_position(seq);
    // The tile with the longest context comes first.
    for (int tile = (rows - 1) / kMaxRows; tile >= 0 && rows > 0; tile--) {
      int row = tile * kMaxRows, num_rows = min_int(kMaxRows, rows - row);
      int first = first_position + row / group_;
      int end = first_position + (row + num_rows - 1) / group_ + 1;
      Task task{seq,
                row,
                num_rows,
                0,
                op_.num_kv_heads,
                op_.window > 0 ? max_int(0, first - op_.window + 1) : 0,
                end,
                kNoMerge,
                0,
                false};
      if (rows > kMaxRows) add_by_head(task, true);  // prefill: for locality and balance
      else add_rows(task);
    }
  }

  // Adds a task in chunks of keys, or as one task if there are few.
  void add_rows(Task task) {
    Chunks chunks = split(task.first_key, task.end_key,
                          op_.num_threads > 1 ? (task.end_key - task.first_key) / chunk_ : 1);
    if (chunks.count > 1 && task.first_merge == kNoMerge) {
      task.first_merge = static_cast<int>(plan_.merges.size());
      plan_.merges.push_back({task.seq, task.first_row, task.num_rows, 0, 0});
    }
    if (task.first_merge != kNoMerge) {
      Merge& merge = plan_.merges[task.first_merge];
      task.part = merge.num_parts;
      merge.num_parts += chunks.count;
      merge.num_tasks += chunks.count;
    }
    for (int i = 0; i < chunks.count; i++, task.part++) {
      task.first_key = chunks.begin(i);
      task.end_key = chunks.end(i);
      plan_.tasks.push_back(task);
    }
  }

  void add_by_head(Task task, bool each) {
    int heads = each ? 1 : op_.num_kv_heads;
    for (task.num_heads = heads; task.first_head < op_.num_kv_heads; task.first_head += heads)
      plan_.tasks.push_back(task);
  }

  struct Chunks {
    int first, size, last, count;
    int begin(int i) const { return first + i * size; }
    int end(int i) const { return min_int(last, first + (i + 1) * size); }
  };

  // Returns about `wanted` chunks of whole tiles.
  static Chunks split(int first, int end, int wanted) {
    int keys = end - first, count = max_int(1, wanted);
    int size = round_up((keys + count - 1) / count, kTileKeys);
    return {first, size, end, (keys + size - 1) / size};
  }

  const Attention& op_;
  int group_, chunk_;
  Plan plan_;
};

// Returns the first sequence whose lengths or blocks lie outside the cache or the batch, or -1.
int find_invalid_sequence(const Attention& op, int num_tokens, long max_blocks) {
  for (int seq = 0; seq < op.num_seqs; seq++) {
    int query_len = op.query_len(seq), keys = op.seq_lens[seq];
    if (op.cu_seqlens_q[seq] < 0 || op.cu_seqlens_q[seq + 1] > num_tokens || query_len < 0 ||
        keys < query_len || keys > max_blocks * op.block_size)
      return seq;
    int first_key = op.window > 0 ? max_int(0, keys - query_len - op.window + 1) : 0;
    for (int block = first_key / op.block_size; block * op.block_size < keys; block++) {
      int32_t id = op.table(seq)[block];
      if (id < 0 || id >= op.num_blocks) return seq;
    }
  }
  return -1;
}

}  // namespace

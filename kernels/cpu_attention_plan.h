// What one attention call is made of, checked and cut into tasks for the threads.
//
// A prefill is cut by kv head and query rows. A decode step is a task a sequence, over all heads, so
// that a block of the cache is read once, as it lies; contexts too long for that are cut into chunks.
//
// Source: Dao et al. 2023, "Flash-Decoding" (split contexts).
#pragma once

#include <vector>

#include "cpu_tile.h"

namespace {

constexpr int kTileKeys = 64;
constexpr int kMaxRows = 96;       // query rows of a task: 16 register tiles for each packing of a tile
constexpr int kMinChunkKeys = 128;  // shorter chunks cost more to merge than they save
static_assert(kTileKeys % (kTileVectors * kLanes) == 0, "a tile of keys is whole register tiles");

struct Attention {
  void* out;
  const void *q, *k_cache, *v_cache;
  const int32_t *block_tables, *cu_seqlens_q, *seq_lens;
  int num_seqs, num_q_heads, num_kv_heads, head_dim, num_blocks, block_size;
  long table_stride, q_row_stride, q_head_stride, out_row_stride, out_head_stride;
  float scale;
  int window;  // 0 = all earlier keys
  int num_threads;
};

struct Task {
  int seq, first_row, num_rows;  // rows of (position, head of the group)
  int first_head, num_heads;     // kv heads
  int first_key, end_key;
  int split, num_splits, partial;  // partial: index of the merge group, where num_splits > 1
};

std::vector<Task> plan(const Attention& op, int* num_groups) {
  int group = op.num_q_heads / op.num_kv_heads;
  long decode_keys = 0;
  for (int seq = 0; seq < op.num_seqs; seq++) {
    int rows = (op.cu_seqlens_q[seq + 1] - op.cu_seqlens_q[seq]) * group;
    if (rows <= kMaxRows) decode_keys += op.seq_lens[seq];
  }
  int chunk = max_int(kMinChunkKeys,
                      round_up(static_cast<int>(decode_keys / (op.num_threads * 4L)), kTileKeys));
  std::vector<Task> tasks;
  for (int seq = 0; seq < op.num_seqs; seq++) {
    int query_len = op.cu_seqlens_q[seq + 1] - op.cu_seqlens_q[seq];
    int rows = query_len * group, first_position = op.seq_lens[seq] - query_len;
    int last_tile = (rows - 1) / kMaxRows;
    for (int tile = last_tile; tile >= 0 && rows > 0; tile--) {  // the longest context first
      Task task{seq, tile * kMaxRows, min_int(kMaxRows, rows - tile * kMaxRows),
                0, op.num_kv_heads, 0, 0, 0, 1, 0};
      int first = first_position + task.first_row / group;
      int end = first_position + (task.first_row + task.num_rows - 1) / group + 1;
      task.first_key = op.window > 0 ? max_int(0, first - op.window + 1) : 0;
      task.end_key = end;
      if (rows > kMaxRows) {  // prefill: a task a head, for locality and balance
        task.num_heads = 1;
        for (int head = 0; head < op.num_kv_heads; head++) {
          task.first_head = head;
          tasks.push_back(task);
        }
        continue;
      }
      int keys = task.end_key - task.first_key;
      task.num_splits = op.num_threads > 1 ? max_int(1, keys / chunk) : 1;
      if (task.num_splits > 1) task.partial = (*num_groups)++;
      int size = round_up((keys + task.num_splits - 1) / task.num_splits, kTileKeys);
      int begin = task.first_key;
      task.num_splits = (keys + size - 1) / size;
      for (int s = 0; s < task.num_splits; s++) {
        task.split = s;
        task.first_key = begin + s * size;
        task.end_key = min_int(begin + (s + 1) * size, end);
        tasks.push_back(task);
      }
    }
  }
  return tasks;
}

// The index of the first sequence whose lengths or blocks lie outside the cache or the batch, or -1.
int find_invalid_sequence(const Attention& op, int num_tokens, long max_blocks) {
  for (int seq = 0; seq < op.num_seqs; seq++) {
    int query_len = op.cu_seqlens_q[seq + 1] - op.cu_seqlens_q[seq], keys = op.seq_lens[seq];
    if (op.cu_seqlens_q[seq] < 0 || op.cu_seqlens_q[seq + 1] > num_tokens || query_len < 0 ||
        keys < query_len || keys > max_blocks * op.block_size)
      return seq;
    int first_key = op.window > 0 ? max_int(0, keys - query_len - op.window + 1) : 0;
    for (int block = first_key / op.block_size; block * op.block_size < keys; block++) {
      int32_t id = op.block_tables[seq * op.table_stride + block];
      if (id < 0 || id >= op.num_blocks) return seq;
    }
  }
  return -1;
}

}  // namespace

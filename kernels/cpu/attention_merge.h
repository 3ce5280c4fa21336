// Merges rows whose keys were spread over several tasks from their partial results.
#pragma once

#include <atomic>
#include <cmath>
#include <memory>

#include "attention_plan.h"

namespace {

// A partial result is (maximum, total, sums[width]) of one query row; a merge has one per part, kv
// head and row.
class PartialResults {
 public:
  PartialResults(const Attention& op, const std::vector<Merge>& merges, int width)
      : merges_(merges), num_heads_(op.num_kv_heads), width_(width) {
    size_t size = 0;
    for (const Merge& merge : merges) {
      starts_.push_back(size);
      size += static_cast<size_t>(merge.num_parts) * part_size(merge);
    }
    floats_.reset(new float[size]);
    unfinished_.reset(new std::atomic<int>[merges.size()]);
    for (size_t i = 0; i < merges.size(); i++) unfinished_[i] = merges[i].num_tasks;
  }

  // Stores one row of a task; `row` counts from the task's first row.
  void keep(const Task& task, int head, int row, float maximum, float total, const float* sums) {
    int rows = merges_[task.first_merge].num_rows;
    float* to = at(task.first_merge + row / rows, task.part, task.first_head + head, row % rows);
    to[0] = maximum;
    to[1] = total;
    std::memcpy(to + 2, sums, sizeof(float) * width_);
  }

  // Counts a task as done. Calls body(merge) for every merge whose parts are now complete.
  template <class Body>
  void finish(const Task& task, Body body) {
    int rows = merges_[task.first_merge].num_rows;
    for (int i = task.first_merge; i < task.first_merge + task.num_rows / rows; i++)
      if (unfinished_[i].fetch_sub(1, std::memory_order_acq_rel) == 1) body(i);
  }

  struct Sum {
    float maximum, total;
  };

  // Adds up a row's parts in sums[width]; returns its maximum and its total.
  Sum add_up(int merge, int head, int row, float* sums) const {
    const float* first = at(merge, 0, head, row);
    size_t step = part_size(merges_[merge]);
    float maximum = -INFINITY, total = 0;
    for (int part = 0; part < merges_[merge].num_parts; part++)
      maximum = std::fmax(maximum, first[part * step]);
    std::memset(sums, 0, sizeof(float) * width_);
    for (int part = 0; part < merges_[merge].num_parts; part++) {
      const float* from = first + part * step;
      // Not the maximum: if all scores are NaN it may be -inf too, and the row must be NaN.
      if (from[1] == 0.0f) continue;  // saw no key
      float share = std::exp2(from[0] - maximum);
      total += share * from[1];
      for (int i = 0; i < width_; i += kLanes)
        store(sums + i, load(sums + i) + load(from + 2 + i) * share);
    }
    return {maximum, total};
  }

 private:
  size_t part_size(const Merge& merge) const {
    return static_cast<size_t>(num_heads_) * merge.num_rows * (width_ + 2);
  }
  float* at(int merge, int part, int head, int row) const {
    size_t in_part = static_cast<size_t>(head) * merges_[merge].num_rows + row;
    return floats_.get() + starts_[merge] + part * part_size(merges_[merge]) +
           in_part * (width_ + 2);
  }

  const std::vector<Merge>& merges_;
  int num_heads_, width_;
  std::vector<size_t> starts_;
  std::unique_ptr<float[]> floats_;
  std::unique_ptr<std::atomic<int>[]> unfinished_;
};

}  // namespace

// Runs tasks on the threads of the OpenMP runtime that the process already has.
//
// torch brings its own OpenMP runtime. A second one would mean a second set of threads that spin
// between regions and fight the first for the cores, so this code links none: the loader hands over
// the address of GOMP_parallel, which GNU, LLVM and Intel runtimes all export.
#pragma once

#include <atomic>

#define BM_EXPORT extern "C" __attribute__((visibility("default")))

typedef void (*GompParallel)(void (*)(void*), void*, unsigned, unsigned);
extern GompParallel bm_gomp_parallel;  // null: everything runs on the calling thread

namespace {

template <class Body>
struct TaskRange {
  Body* body;
  int num_tasks;
  std::atomic<int> next;
};

template <class Body>
void run_tasks(void* data) {
  auto* range = static_cast<TaskRange<Body>*>(data);
  for (;;) {
    int task = range->next.fetch_add(1, std::memory_order_relaxed);
    if (task >= range->num_tasks) return;
    (*range->body)(task);
  }
}

// body(task) for every task in [0, num_tasks), each once, on up to num_threads threads.
template <class Body>
void parallel_for(int num_tasks, int num_threads, Body body) {
  if (num_tasks <= 1 || num_threads <= 1 || bm_gomp_parallel == nullptr) {
    for (int task = 0; task < num_tasks; task++) body(task);
    return;
  }
  TaskRange<Body> range{&body, num_tasks, {0}};
  // Always the full number of threads: a team of another size makes the runtime rebuild its pool.
  bm_gomp_parallel(run_tasks<Body>, &range, static_cast<unsigned>(num_threads), 0);
}

// Elementwise work: rows [begin, end) of one task. Too little work is not worth waking threads.
template <class Body>
void parallel_rows(int num_rows, long work_per_row, int num_threads, Body body) {
  constexpr long kMinWork = 16384;  // elements; about 2 us, what waking a thread costs
  long total = num_rows * work_per_row;
  int tasks = total < 2 * kMinWork ? 1 : num_threads * 4;
  if (tasks > num_rows) tasks = num_rows;
  parallel_for(tasks, num_threads, [&](int task) {
    int begin = static_cast<int>(static_cast<long>(num_rows) * task / tasks);
    int end = static_cast<int>(static_cast<long>(num_rows) * (task + 1) / tasks);
    body(begin, end);
  });
}

}  // namespace

// Runs tasks on a few helper threads.
//
// Not OpenMP: its regions end in a barrier that waits for every thread, also for one that the
// kernel has taken off its core. With other work on the machine that costs milliseconds per region,
// and a decoder has 240 regions per token. Here the caller works through the tasks even if no
// helper comes, and waits only for tasks that a helper has begun.
#pragma once

#include <atomic>

#define BM_EXPORT extern "C" __attribute__((visibility("default")))

// Calls work(data) on this thread and on up to num_threads - 1 helpers, and returns when all of
// those calls have. work must take its tasks from a shared counter. Defined in threads.cpp.
void bm_run_on_threads(void (*work)(void*), void* data, int num_threads);

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

// Calls body(task) once for every task in [0, num_tasks), on up to num_threads threads.
template <class Body>
void parallel_for(int num_tasks, int num_threads, Body body) {
  if (num_tasks <= 1 || num_threads <= 1) {
    for (int task = 0; task < num_tasks; task++) body(task);
    return;
  }
  TaskRange<Body> range{&body, num_tasks, {0}};
  bm_run_on_threads(run_tasks<Body>, &range, num_threads);
}

// Calls body(begin, end) with the rows of each task. Too little work is not worth waking threads.
template <class Body>
void parallel_rows(int num_rows, long work_per_row, int num_threads, Body body) {
  constexpr long kMinWork = 16384;  // elements; about 2 us, the cost of handing over a task
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

// The helper threads of parallel_for: started at first use, asleep if there is no work.
#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr auto kSpinTime = std::chrono::microseconds(200);  // longer than the gap between two ops
constexpr int kSpinsPerClockRead = 64;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Spins until done() for kSpinTime at most; returns whether it is done.
template <class Done>
bool spin_until(Done done) {
  auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kSpinsPerClockRead; i++) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// A call is open while its caller works on it. A helper first counts itself, then checks whether
// the call is open; the caller first closes the call, then checks whether a helper is counted. All
// four are in one total order, so either the helper sees the call closed or the caller sees the
// helper.
struct Pool {
  std::mutex busy;  // held by the thread whose call is open
  std::atomic<unsigned> epoch{0};
  std::atomic<bool> open{false};
  std::atomic<int> inside{0};
  std::atomic<int> wanted{0};  // helpers that this call may have
  void (*work)(void*) = nullptr;
  void* data = nullptr;

  std::mutex mutex;  // for sleeping
  std::condition_variable wake;
  int num_sleeping = 0;
  int num_helpers = 0;

  void help(int index) {
    unsigned seen = 0;
    for (;;) {
      auto is_new = [&] { return epoch.load(std::memory_order_acquire) != seen; };
      if (!spin_until(is_new)) {
        std::unique_lock<std::mutex> lock(mutex);
        num_sleeping++;
        wake.wait(lock, is_new);
        num_sleeping--;
      }
      seen = epoch.load(std::memory_order_acquire);
      inside.fetch_add(1);
      if (open.load() && index < wanted.load()) work(data);
      inside.fetch_sub(1);
    }
  }

  void start_helpers(int count) {
    for (; num_helpers < count; num_helpers++) std::thread(&Pool::help, this, num_helpers).detach();
  }

  void run(void (*new_work)(void*), void* new_data, int helpers) {
    start_helpers(helpers);
    work = new_work;
    data = new_data;
    wanted.store(helpers);
    open.store(true);
    {
      std::lock_guard<std::mutex> lock(mutex);
      epoch.fetch_add(1);
      if (num_sleeping > 0) wake.notify_all();
    }
    new_work(new_data);
    open.store(false);
    while (!spin_until([&] { return inside.load() == 0; })) std::this_thread::yield();
  }
};

// Never destroyed: the helpers use it until the process ends. A forked child has no helpers, so it
// gets its own pool.
Pool* pool = nullptr;
std::once_flag made;

void make_pool() { pool = new Pool; }

}  // namespace

void bm_run_on_threads(void (*work)(void*), void* data, int num_threads) {
  std::call_once(made, [] {
    make_pool();
    pthread_atfork(nullptr, nullptr, make_pool);
  });
  std::unique_lock<std::mutex> lock(pool->busy, std::try_to_lock);
  if (!lock.owns_lock()) {  // another thread of this process is using the helpers
    work(data);
    return;
  }
  pool->run(work, data, num_threads - 1);
}

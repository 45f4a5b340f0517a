// Work in parts on the threads of XLA's pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

// Calls work(part) for all parts, on this thread and, if free, on others of the pool, so many in all. No thread waits for a part that none
// has begun: a pool whose threads all wait here does not lock up.
template <typename Work>
void ForParts(xla::ffi::ThreadPool& pool, int64_t threads, int64_t parts, const Work& work) {
  threads = std::min({threads, parts, pool.num_threads()});
  if (threads <= 1) {
    for (int64_t part = 0; part < parts; ++part) work(part);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  auto take = [shared, parts, &work] {  // `work` is there as long as a part is left to take
    int64_t taken = 0;
    for (int64_t part; (part = shared->next.fetch_add(1)) < parts; ++taken) work(part);
    if (taken == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->done += taken) == parts) shared->all_done.notify_all();
  };
  for (int64_t i = 1; i < threads; ++i) pool.Schedule(std::function<void()>(take));
  take();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == parts; });
}

// WorkerPool: threads that do what may block, and a queue in front of them.
//
// Both are bounded, and that is the point: a queue without a bound answers an overload
// by growing until the memory is gone, and meanwhile every job waits longer than its
// client does.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class WorkerPool {
 public:
  using Job = std::function<void()>;  // must not throw

  // `workers` threads, and at most `queue` jobs that wait for one. Throws
  // StartupError when there cannot be so many threads.
  WorkerPool(std::size_t workers, std::size_t queue);
  // Drops the jobs that wait, waits for those that run, and joins every thread.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // False: the queue is full, and the job is not taken.
  bool try_submit(Job job);

 private:
  void work();
  void stop();

  const std::size_t queue_;
  std::mutex mutex_;                 // of all that follows
  std::condition_variable changed_;  // a job has come, or the end
  std::deque<Job> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;  // the constructor's and the destructor's
};

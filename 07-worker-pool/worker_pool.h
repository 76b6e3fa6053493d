// WorkerPool: threads for jobs that may block, and a queue in front of them.
//
// Both are bounded, and that is the point. Under overload a queue without a bound grows
// until the memory is gone, and meanwhile every job waits longer than its client does.
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

  // Starts `workers` threads; at most `queue` jobs wait for one. Throws StartupError if
  // the threads cannot be created.
  WorkerPool(std::size_t workers, std::size_t queue);
  // Drops the jobs that wait, waits for the jobs that run, and joins every thread.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Returns false if the queue is full; the job is then not taken.
  bool try_submit(Job job);

 private:
  void work();
  void stop();

  const std::size_t queue_;
  std::mutex mutex_;                 // guards jobs_ and stopping_
  std::condition_variable changed_;  // a job was added, or the pool stops
  std::deque<Job> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;  // for the constructor and the destructor
};

// WorkerPool: threads that do what may block, and a queue in front of them.
//
// In 07 the queue had a bound, and that was the point. Here it needs none: each job is of
// a goroutine that is there already, and waits for it.
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

  // At most `limit` threads, each started when all others have something to do: system
  // calls are cheaper in a process of one thread.
  explicit WorkerPool(std::size_t limit) : limit_(limit) {}
  // Drops the jobs that wait, waits for those that run, and joins every thread.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Any thread may call it. Throws std::system_error when there cannot be even one thread,
  // and std::bad_alloc.
  void submit(Job job);

 private:
  void start_another();
  void work();

  const std::size_t limit_;
  std::mutex mutex_;                 // of all that follows
  std::condition_variable changed_;  // a job has come, or the end
  std::deque<Job> jobs_;
  std::size_t running_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

// WorkerPool: threads that do what may block, and a queue in front of them.
//
// The threads are bounded, and the queue can be. In 07 that was the point. Here no bound
// is needed: each job is of a goroutine that is there already, and waits for it.
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

  // At most `workers` threads, each started when all others have something to do (system
  // calls are cheaper in a process of one thread), and `queue` jobs that wait for one.
  WorkerPool(std::size_t workers, std::size_t queue);
  // Drops the jobs that wait, waits for those that run, and joins every thread.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Any thread may ask. If only one submits, what full() says of room stays true for it.
  bool full() const;
  std::size_t unfinished() const;  // jobs that wait, and those that are being done

  // False: the queue is full, and the job is not taken. Throws std::system_error when
  // there cannot be even one thread.
  bool try_submit(Job job);

 private:
  void start_another();
  void work();
  void stop();

  const std::size_t workers_;
  const std::size_t queue_;
  mutable std::mutex mutex_;         // of all that follows
  std::condition_variable changed_;  // a job has come, or the end
  std::deque<Job> jobs_;
  std::size_t running_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

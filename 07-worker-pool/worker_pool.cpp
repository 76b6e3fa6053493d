#include "worker_pool.h"

#include <exception>
#include <utility>

#include "common/socket/process.h"

WorkerPool::WorkerPool(std::size_t workers, std::size_t queue) : queue_(queue) {
  try {
    for (std::size_t i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
  } catch (const std::exception& error) {
    stop();  // joins the threads that did start
    throw StartupError(fmt::format("cannot start {} workers: {}", workers, error.what()));
  }
}

WorkerPool::~WorkerPool() { stop(); }

bool WorkerPool::try_submit(Job job) {
  {
    const std::lock_guard lock(mutex_);
    if (jobs_.size() >= queue_) return false;
    jobs_.push_back(std::move(job));
  }
  changed_.notify_one();
  return true;
}

// What every worker runs. The lock is held to take a job, never while a job runs.
void WorkerPool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    {
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
    }  // what the job held is freed here, unlocked too
    lock.lock();
  }
}

void WorkerPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    jobs_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

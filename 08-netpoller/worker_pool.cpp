#include "worker_pool.h"

#include <exception>
#include <utility>

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    jobs_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::submit(Job job) {
  {
    const std::lock_guard lock(mutex_);
    if (jobs_.size() + running_ >= threads_.size()) start_another();
    jobs_.push_back(std::move(job));
  }
  changed_.notify_one();
}

// If it cannot be had, those that are there have to do.
void WorkerPool::start_another() {
  if (threads_.size() == limit_) return;
  try {
    threads_.emplace_back([this] { work(); });
  } catch (const std::exception&) {
    if (threads_.empty()) throw;
  }
}

// What every thread does. The lock is held to take a job, never while one is done.
void WorkerPool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    {
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      ++running_;
      lock.unlock();
      job();
    }  // what the job held is given back here, unlocked too
    lock.lock();
    --running_;
  }
}

// BlockingPool: threads for calls that block, and a queue of such calls. 07's queue had a
// bound. Here each job belongs to a goroutine that exists anyway, and waits for it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class BlockingPool {
 public:
  explicit BlockingPool(std::size_t most) : most_(most) {}

  // Any thread. The job must not throw. Returns null, or why there is no thread or no memory.
  std::exception_ptr submit(std::function<void()> job) noexcept try {
    const std::lock_guard lock(mutex_);
    try {
      const bool all_busy = jobs_.size() + running_ >= threads_.size();
      if (all_busy && threads_.size() < most_) threads_.emplace_back([this] { work(); });
    } catch (const std::exception&) {
      if (threads_.empty()) throw;
    }
    jobs_.push_back(std::move(job));
    changed_.notify_one();
    return nullptr;
  } catch (...) {
    return std::current_exception();
  }
  std::size_t running() const { return running_; }

  // Drops the jobs in the queue, and waits for those that run.
  void join() {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    lock.unlock();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void work() {
    for (std::unique_lock lock(mutex_);; lock.lock(), --running_) {
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (stopping_) return;
      const auto job = std::move(jobs_.front());
      jobs_.pop_front();
      ++running_;
      lock.unlock();
      job();
    }
  }

  const std::size_t most_;
  std::atomic<std::size_t> running_ = 0;
  std::mutex mutex_;                 // guards what follows
  std::condition_variable changed_;  // a job was added, or stopping_ set
  std::deque<std::function<void()>> jobs_;
  std::vector<std::thread> threads_;
  bool stopping_ = false;
};

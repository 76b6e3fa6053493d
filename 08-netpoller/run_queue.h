// RunQueue: goroutines that can go on. Go: runq in runtime/proc.go.
//
// Go's is a ring of 256 that its owner uses without a lock, with a shared queue for what
// does not fit. Here it is a list through the goroutines themselves, which needs no
// memory and has no limit, under a lock that is hardly ever contended.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <utility>

#include "task.h"

// A list of goroutines, of one thread.
class GoroutineList {
 public:
  GoroutineList() = default;
  GoroutineList(Goroutine& one) { push(one); }  // NOLINT(google-explicit-constructor)

  void push(Goroutine& goroutine) {
    goroutine.next = nullptr;
    (last_ ? last_->next : first_) = &goroutine;
    last_ = &goroutine;
    ++size_;
  }

  Goroutine* pop() {
    if (!first_) return nullptr;
    Goroutine* goroutine = first_;
    first_ = goroutine->next;
    if (!first_) last_ = nullptr;
    --size_;
    return goroutine;
  }

  void append(GoroutineList other) {
    if (!other.first_) return;
    (last_ ? last_->next : first_) = other.first_;
    last_ = other.last_;
    size_ += other.size_;
  }

  // Fetches the next one's frame into the cache: it has slept, and is cold.
  void prefetch() const {
    constexpr std::size_t kLine = 64;
    for (std::size_t i = 0; first_ && i < 6; ++i)
      __builtin_prefetch(reinterpret_cast<const char*>(first_) + i * kLine);
  }

  std::size_t size() const { return size_; }

 private:
  Goroutine* first_ = nullptr;
  Goroutine* last_ = nullptr;
  std::size_t size_ = 0;
};

class RunQueue {
 public:
  void push(GoroutineList list) {
    const std::lock_guard lock(mutex_);
    list_.append(list);
    size_ = list_.size();
  }

  Goroutine* pop() {
    if (size_ == 0) return nullptr;
    const std::lock_guard lock(mutex_);
    Goroutine* goroutine = list_.pop();
    size_.store(list_.size(), std::memory_order_release);  // nobody waits for it to shrink
    list_.prefetch();
    return goroutine;
  }

  // Half of what is there, rounded up.
  GoroutineList take_half() {
    if (size_ == 0) return {};
    const std::lock_guard lock(mutex_);
    GoroutineList half;
    while (half.size() < list_.size()) half.push(*list_.pop());
    size_ = list_.size();
    return half;
  }

  std::size_t size() const { return size_; }

 private:
  std::mutex mutex_;
  GoroutineList list_;
  std::atomic<std::size_t> size_ = 0;  // of list_, to be read without the lock
};

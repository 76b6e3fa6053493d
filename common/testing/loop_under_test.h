// The event loop of 06 or 07 on a thread of its own, with a handler that the test provides.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <future>
#include <thread>
#include <utility>

#include "common/socket/address.h"
#include "common/socket/process.h"
#include "common/testing/outcome.h"
#include "event_loop.h"

// Only 07's loop has workers, and a queue for them.
inline EventLoop make_loop(const EventLoop::OnRequest& on_request, milliseconds idle_timeout = 0ms,
                           [[maybe_unused]] std::size_t workers = 1,
                           [[maybe_unused]] std::size_t queue = 1) {
#if CHAPTER == 6
  return EventLoop(on_request, idle_timeout);
#else
  return EventLoop(on_request, idle_timeout, workers, queue);
#endif
}

class LoopUnderTest {
 public:
  explicit LoopUnderTest(const EventLoop::OnRequest& on_request, milliseconds idle_timeout = 0ms,
                         std::size_t workers = 2, std::size_t queue = 8) {
    ignore_sigpipe();
    std::promise<EventLoop*> made;
    thread_ = std::thread([=, &made, this] {
      Listener listener({.host = "127.0.0.1", .port = 0});
      address_ = local_address(listener.socket());
      EventLoop loop = make_loop(on_request, idle_timeout, workers, queue);
      made.set_value(&loop);
      loop.serve(std::move(listener));
    });
    loop_ = made.get_future().get();
  }
  ~LoopUnderTest() {
    loop_->stop();
    thread_.join();
  }
  LoopUnderTest(const LoopUnderTest&) = delete;
  LoopUnderTest& operator=(const LoopUnderTest&) = delete;

  const Address& address() const { return address_; }
  EventLoop& loop() { return *loop_; }
  std::thread::id thread() const { return thread_.get_id(); }

  // Runs `callback` on the loop's thread, and waits until it has.
  void run(const std::function<void()>& callback) {
    std::promise<void> done;
    loop_->post([&] {
      callback();
      done.set_value();
    });
    if (done.get_future().wait_for(patience) != std::future_status::ready)
      fail("the posted callback has not run");
  }

 private:
  Address address_;
  EventLoop* loop_ = nullptr;
  std::thread thread_;
};

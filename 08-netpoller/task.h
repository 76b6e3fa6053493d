// Task: a coroutine, and Goroutine: what the scheduler knows of one that it runs.
//
// After Go's g (runtime/runtime2.go). A g has a stack, which grows. A coroutine has a
// frame, which the compiler lays out, for all that may be alive across a co_await. So
// `co_await` has to stand wherever the coroutine may wait, also in between: a function
// that waits is a Task too, and its callers say co_await.
#pragma once

#include <coroutine>
#include <exception>
#include <utility>

class Operation;

struct Goroutine {
  std::coroutine_handle<> frame;   // the outermost; the scheduler destroys it at the end
  std::coroutine_handle<> point;   // the innermost: where it goes on; none: it has ended
  Operation* operation = nullptr;  // what it waits for there
  Goroutine* next = nullptr;       // in a run queue, or in line for a descriptor
};

// What a goroutine waits for, in the place where it waits. `co_await operation` tries it;
// if it cannot be done now, the goroutine is suspended, and the worker, on its own stack,
// commits it. From then on another thread may make the operation possible, find the
// goroutine, and have it run at once on another worker. So after a successful commit
// neither the operation nor the goroutine may be touched.
class Operation {
 public:
  // Neither throws: on a worker's own stack there is nobody to catch it.
  virtual bool attempt() = 0;                     // whether it is done
  virtual bool commit(Goroutine& goroutine) = 0;  // false: attempt it again

  bool await_ready();
  void await_suspend(std::coroutine_handle<> point);

 protected:
  ~Operation() = default;
};

// Says of the goroutine that is running where it goes on when this call to it returns;
// nowhere: it has come to its end (scheduler.cpp).
void go_on_at(std::coroutine_handle<> point);

class [[nodiscard]] Task {
 public:
  struct promise_type;
  using Handle = std::coroutine_handle<promise_type>;

  // At the end a called Task goes back to its caller. It does not resume it: that would
  // put one resume into another, and g++ 12 keeps such a tower on the stack. It says
  // where to go on, and returns to the worker, which does.
  struct End {
    bool await_ready() noexcept { return false; }
    void await_suspend(Handle frame) noexcept { go_on_at(frame.promise().caller); }
    void await_resume() noexcept {}
  };

  struct promise_type {
    Goroutine goroutine;             // of the outermost Task
    std::coroutine_handle<> caller;  // of all others; the outermost has none
    std::exception_ptr error;

    Task get_return_object() { return Task(Handle::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    End final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { error = std::current_exception(); }
  };

  Task(Task&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (frame_) frame_.destroy();
  }

  // co_await task: runs it to its end, and throws what it threw.
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> caller) {
    frame_.promise().caller = caller;
    go_on_at(frame_);
  }
  void await_resume() {
    if (frame_.promise().error) std::rethrow_exception(frame_.promise().error);
  }

  // Makes it a goroutine, which owns itself from now on.
  Goroutine& release() {
    Handle frame = std::exchange(frame_, nullptr);
    Goroutine& goroutine = frame.promise().goroutine;
    goroutine.frame = goroutine.point = frame;
    return goroutine;
  }

 private:
  explicit Task(Handle frame) : frame_(frame) {}

  Handle frame_;
};

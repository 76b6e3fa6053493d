// Task<T>: a coroutine that returns a T. Goroutine: a Task that runs by itself. Operation:
// what it waits for. Go: g in runtime/runtime2.go, gopark in runtime/proc.go.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <string_view>
#include <utility>

struct Goroutine {
  std::coroutine_handle<> point;         // where it continues; null: it has ended
  class Operation* operation = nullptr;  // what it waits for there; null: nothing
  Goroutine* next = nullptr;             // in a GoroutineList
};

class GoroutineList {
 public:
  std::size_t size() const { return size_; }
  void push(Goroutine& one) {
    (size_++ > 0 ? last_->next : first_) = &one;
    last_ = &one;
  }
  void push_front(const GoroutineList& others) {
    if (others.size_ == 0) return;
    others.last_->next = first_;
    if (size_ == 0) last_ = others.last_;
    first_ = others.first_;
    size_ += others.size_;
  }
  Goroutine* pop() {
    --size_;
    return std::exchange(first_, first_->next);
  }

 private:
  Goroutine* first_ = nullptr;
  Goroutine* last_ = nullptr;
  std::size_t size_ = 0;
};

// Sets where the running goroutine continues; null: it has ended.
void continue_at(std::coroutine_handle<> point);
// Reports a bug in the program, and aborts. Go: throw.
[[noreturn]] void fatal(std::string_view bug);

// `co_await operation` calls attempt() in the coroutine. If that returns false, the coroutine
// is suspended, and its worker calls commit(). When the goroutine has been made ready, its
// next worker calls attempt() again, and so on until that returns true.
class Operation {
 public:
  virtual bool attempt() noexcept = 0;  // true: done
  // Parks the goroutine; false: call attempt() again instead. After true another worker may
  // have resumed the goroutine, and destroyed this operation with it.
  virtual bool commit(Goroutine& goroutine) noexcept = 0;
  bool await_ready();
  void await_suspend(std::coroutine_handle<> point) { continue_at(point); }
  void await_resume() const {}

 protected:
  ~Operation() = default;
};

// A Task that ends does not resume its caller: g++ 12 would nest one resume in another, and
// overflow the stack. It records that the caller is next, and returns to the worker.
struct TaskEnd {
  bool await_ready() noexcept { return false; }
  void await_suspend(auto frame) noexcept { continue_at(frame.promise().caller); }
  void await_resume() noexcept {}
};

struct PromiseBase {
  Goroutine goroutine;             // if go() started the Task
  std::coroutine_handle<> caller;  // if another Task awaits it
  std::exception_ptr error;
  std::suspend_always initial_suspend() noexcept { return {}; }
  TaskEnd final_suspend() noexcept { return {}; }
  void unhandled_exception() { error = std::current_exception(); }
};

template <typename T>
struct Promise : PromiseBase {
  std::optional<T> value;
  void return_value(T result) { value = std::move(result); }
  T take() { return std::move(*value); }  // NOLINT(bugprone-unchecked-optional-access)
};

template <>
struct Promise<void> : PromiseBase {
  void return_void() {}
  void take() {}
};

// Calling a Task only creates its frame. `co_await task` runs it in the calling goroutine,
// and returns what it returns, or throws what it throws; go(task) makes it a goroutine.
template <typename T = void>
class [[nodiscard]] Task {
 public:
  struct promise_type : Promise<T> {
    Task get_return_object() { return Task(Handle::from_promise(*this)); }
  };
  using Handle = std::coroutine_handle<promise_type>;
  explicit Task(Handle frame) : frame_(frame) { goroutine().point = frame; }
  Task(Task&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  ~Task() {
    if (frame_) frame_.destroy();
  }
  Goroutine& goroutine() { return frame_.promise().goroutine; }
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> caller) {
    frame_.promise().caller = caller;
    continue_at(frame_);
  }
  T await_resume() {
    if (frame_.promise().error) std::rethrow_exception(frame_.promise().error);
    return frame_.promise().take();
  }

 private:
  Handle frame_;
};

void go(Task<> task);  // only from a goroutine

#include "hooks.h"

#include <array>
#include <cstddef>
#include <mutex>
#include <utility>

namespace {

std::mutex mutex;
std::array<std::function<void()>, static_cast<std::size_t>(Window::count)> actions;

}  // namespace

void set_hook(Window window, std::function<void()> action) {
  const std::lock_guard lock(mutex);
  actions[static_cast<std::size_t>(window)] = std::move(action);
}

void hook(Window window) {
  std::function<void()> action;
  {
    const std::lock_guard lock(mutex);
    action = actions[static_cast<std::size_t>(window)];
  }
  if (action) action();
}

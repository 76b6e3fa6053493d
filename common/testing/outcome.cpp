#include "common/testing/outcome.h"

#include <thread>

std::string shortened(const std::string& text) {
  constexpr std::size_t kEnds = 2000;
  if (text.size() <= 2 * kEnds + 100) return text;
  return fmt::format("{} [{} bytes left out] {}", text.substr(0, kEnds), text.size() - 2 * kEnds,
                     text.substr(text.size() - kEnds));
}

bool wait_until(milliseconds limit, const std::function<bool()>& condition) {
  const auto deadline = Clock::now() + limit;
  while (!condition()) {
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

void fail_if_check_takes_too_long() {
  if (Clock::now() > check_ends) fail("the check is still not done; its time is up");
}

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

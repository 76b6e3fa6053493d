#include "common/testing/outcome.h"

#include <thread>

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

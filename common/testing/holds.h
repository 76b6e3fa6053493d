// Lets a doctest case run a behaviour of the battery.
#pragma once

#include <doctest/doctest.h>
#include <fmt/core.h>

#include <functional>
#include <string>

#include "common/testing/battery.h"
#include "common/testing/outcome.h"

// Runs a check: a Failure fails the test case with what was seen. Skipped prints
// "skipped: why", by which CTest knows; the case is then neither passed nor failed.
inline void holds(const std::function<void()>& check) {
  try {
    check();
  } catch (const Skipped& reason) {
    fmt::print("skipped: {}\n", reason.what());
  } catch (const Failure& failure) {
    FAIL(std::string(failure.what()));
  }
}

inline void holds(const Subject& subject, battery::Behaviour behaviour) {
  holds([&] { behaviour(subject); });
}

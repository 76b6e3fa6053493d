// Lets a doctest case run a behaviour of the battery.
//
// Every test case has an id: the text before the first ": " of its name, unique in its program,
// of a-z, 0-9 and dashes. A behaviour's id is its function's name. mutants.txt and commands in
// the chapters' texts use ids (-tc='half-close:*'). The rest of a name may change; an id may not.
#pragma once

#include <doctest/doctest.h>
#include <fmt/core.h>

#include <functional>
#include <string>

#include "common/testing/battery.h"
#include "common/testing/outcome.h"

// Whether anything was skipped since the program started (see doctest_main.cpp).
inline bool skipped_something = false;

// Runs a check: a Failure fails the test case with what was seen, Skipped says why.
inline void holds(const std::function<void()>& check) {
  try {
    check();
  } catch (const Skipped& reason) {
    skipped_something = true;
    fmt::print("skipped: {}\n", reason.what());
  } catch (const Failure& failure) {
    FAIL(std::string(failure.what()));
  }
}

inline void holds(const Subject& subject, battery::Behaviour behaviour) {
  holds([&] { behaviour(subject); });
}

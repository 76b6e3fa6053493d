// How a check ends when it does not pass, and how it waits.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

// No wait in a test is longer than this, unless it says so. It is far above what
// any step takes: a test that needs it has failed. (Tests that expect a failure
// shorten it.)
inline milliseconds patience = 10s;

// When the running check must be done. Otherwise a server that drips bytes would keep
// every wait short, and the check going for ever.
inline Clock::time_point check_ends = Clock::time_point::max();
void fail_if_check_takes_too_long();

// `text`, or its first and last 2,000 bytes if it is much longer: a message may quote all
// that a server wrote.
std::string shortened(const std::string& text);

// The server failed the check; the text says what was seen.
struct Failure : std::runtime_error {
  explicit Failure(const std::string& seen) : std::runtime_error(shortened(seen)) {}
};

// Not possible here; the text says why.
struct Skipped : std::runtime_error {
  explicit Skipped(const std::string& reason) : std::runtime_error(shortened(reason)) {}
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure(fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
[[noreturn]] void skip(fmt::format_string<Args...> format, Args&&... args) {
  throw Skipped(fmt::format(format, std::forward<Args>(args)...));
}

// Checks `condition` every millisecond. Returns false if it does not hold within `limit`.
bool wait_until(milliseconds limit, const std::function<bool()>& condition);

// Milliseconds since `start`, as a number to print and compare.
double ms_since(Clock::time_point start);

// The sanitizer that tests and their servers are built with (CMake defines it). Memory
// is then the sanitizer's, and ThreadSanitizer knows at most 8,128 threads.
#ifdef SANITIZED_ADDRESS
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif
#ifdef SANITIZED_THREAD
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif
constexpr bool kSanitized = kAddressSanitizer || kThreadSanitizer;

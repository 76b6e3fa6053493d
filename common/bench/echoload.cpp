// Loads an echo server, and says how fast it answers.
//
//   build/common/echoload --clients 1000 127.0.0.1:8080                  closed loop
//   build/common/echoload --clients 1000 --rate 20000 127.0.0.1:8080     open loop
//
// load.h says what the two measure. The exit code is 1 if bytes came back changed, or
// nothing came back.
#include <fmt/core.h>

#include <charconv>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/bench/load.h"
#include "common/bench/report.h"
#include "common/socket/options.h"
#include "common/socket/process.h"

namespace {

struct Target {
  std::string host;
  std::uint16_t port;
};

// "127.0.0.1:8080", "[::1]:8080", "localhost:8080".
std::optional<Target> parse_target(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return std::nullopt;
  std::string_view host = text.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  const std::string_view digits = text.substr(colon + 1);
  std::uint16_t port = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (error != std::errc() || end != digits.data() + digits.size() || port == 0)
    return std::nullopt;
  return Target{std::string(host), port};
}

LoadResult load(const Target& target, LoadPlan plan) {
  const ProgressLine line;
  plan.on_progress = [&](const std::string& text) { line.show(text); };
  return run_load(resolve(target.host, target.port), plan);
}

int misuse(const char* program, const std::string& reason) {
  fmt::print(stderr, "{}: {}\nusage: {} [flags] HOST:PORT    (flags: --help)\n", program, reason,
             program);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  LoadPlan plan;
  bool json = false;
  Options options("Loads the echo server at HOST:PORT, and says how fast it answers.");
  add_flags(options, plan);
  options.add("json", json, "print one JSON object");
  const std::vector<std::string> rest = options.parse_command(argc, argv);
  if (rest.size() != 1) return misuse(argv[0], "one HOST:PORT is needed, after the flags");
  const auto target = parse_target(rest[0]);
  if (!target) return misuse(argv[0], fmt::format("'{}' is not HOST:PORT", rest[0]));
  if (const std::string wrong = what_is_wrong_with(plan); !wrong.empty()) {
    return misuse(argv[0], wrong);
  }
  try {
    const LoadResult result = load(*target, plan);
    fmt::print("{}", json ? as_json(plan, result) : as_text(plan, result));
    return result.mismatched_bytes > 0 || result.answered == 0 ? 1 : 0;
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}

// Command-line flags: `--name value`, read by getopt_long(3).
//
//   std::size_t workers = 4;
//   Options options("An echo server.");
//   options.add("workers", workers, "threads that compute");
//   options.parse(argc, argv);
//
// Each flag is bound to a variable, whose value before parse is the default.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Where a server listens. Every server has these two flags.
struct Endpoint {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8080;  // 0: a free one, chosen by the kernel
};

class Options {
 public:
  explicit Options(std::string summary) : summary_(std::move(summary)) {}

  void add(Endpoint& endpoint);                                         // --host, --port
  void add(const char* name, bool& value, const std::string& meaning);  // no value: it sets true
  void add(const char* name, std::string& value, const std::string& meaning);
  // May be given more than once: each adds a value.
  void add(const char* name, std::vector<std::string>& values, const std::string& meaning);
  void add(const char* name, std::uint16_t& value, const std::string& meaning);  // 0 to 65535
  void add(const char* name, std::size_t& value, const std::string& meaning,
           std::size_t most = 1'000'000'000);  // 1 to `most`
  // A number with its unit: 300ms, 30s, 5m, 1h. Positive, at most 24 days.
  void add(const char* name, std::chrono::milliseconds& value, const std::string& meaning);

  // Sets the variables from the command line. --help prints the usage and exits
  // with 0; a wrong flag or value prints the reason and the usage on stderr and
  // exits with 2, as does an argument that belongs to no flag.
  void parse(int argc, char** argv) const;

  // The same, but stops at the first argument that is not a flag (or after "--"), and
  // returns it and all that follow: the command of another program.
  std::vector<std::string> parse_command(int argc, char** argv) const;

 private:
  struct Flag {
    std::string name;
    std::string placeholder;  // ADDRESS, N, TIME …; empty if it takes no value
    std::string meaning;      // with the default
    std::function<bool(const std::string&)> set;
    std::string expects;  // printed when set returns false
  };

  std::string usage(const char* program) const;
  [[noreturn]] void refuse(const char* program, const std::string& reason) const;

  std::string summary_;
  std::vector<Flag> flags_;
};

// "300ms", "30s", "5m", "1h". Returns nullopt for any other text, and for 0.
std::optional<std::chrono::milliseconds> parse_duration(std::string_view text);

// The inverse, in the largest unit that is exact: 1500ms, 30s.
std::string to_text(std::chrono::milliseconds duration);

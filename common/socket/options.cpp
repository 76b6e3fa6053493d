#include "common/socket/options.h"

#include <fmt/core.h>
#include <getopt.h>

#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace {

struct Unit {
  std::string_view name;
  std::int64_t milliseconds;
};

// Longest first, for to_text.
constexpr std::array<Unit, 4> kUnits = {{{"h", 3'600'000}, {"m", 60'000}, {"s", 1'000}, {"ms", 1}}};

template <typename Number>
bool parse_number(std::string_view text, Number least, Number most, Number& value) {
  Number number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < least || number > most)
    return false;
  value = number;
  return true;
}

}  // namespace

void Options::add(Endpoint& endpoint) {
  add("host", endpoint.host, "address to listen on");
  add("port", endpoint.port, "port to listen on; 0 takes a free one");
}

void Options::add(const char* name, bool& value, const std::string& meaning) {
  flags_.push_back({name, "", meaning, [&value](const std::string&) { return value = true; }, ""});
}

void Options::add(const char* name, std::string& value, const std::string& meaning) {
  flags_.push_back({name, "TEXT",
                    fmt::format("{} (default: {})", meaning, value.empty() ? "none" : value),
                    [&value](const std::string& text) {
                      value = text;
                      return !text.empty();
                    },
                    "a text that is not empty"});
}

void Options::add(const char* name, std::vector<std::string>& values, const std::string& meaning) {
  flags_.push_back({name, "TEXT", meaning,
                    [&values](const std::string& text) {
                      values.push_back(text);
                      return !text.empty();
                    },
                    "a text that is not empty"});
}

void Options::add(const char* name, std::uint16_t& value, const std::string& meaning) {
  flags_.push_back({name, "N", fmt::format("{} (default: {})", meaning, value),
                    [&value](const std::string& text) {
                      return parse_number<std::uint16_t>(text, 0, 65535, value);
                    },
                    "a number from 0 to 65535"});
}

void Options::add(const char* name, std::size_t& value, const std::string& meaning,
                  std::size_t most) {
  flags_.push_back({name, "N", fmt::format("{} (default: {})", meaning, value),
                    [&value, most](const std::string& text) {
                      return parse_number<std::size_t>(text, 1, most, value);
                    },
                    fmt::format("a number from 1 to {}", most)});
}

void Options::add(const char* name, std::chrono::milliseconds& value, const std::string& meaning) {
  flags_.push_back(
      {name, "TIME",
       fmt::format("{} (default: {})", meaning, value.count() == 0 ? "none" : to_text(value)),
       [&value](const std::string& text) {
         const auto duration = parse_duration(text);
         if (duration) value = *duration;
         return duration.has_value();
       },
       "a time with its unit, from 1ms to 596h, such as 300ms, 30s or 5m"});
}

void Options::parse(int argc, char** argv) const {
  const std::vector<std::string> rest = parse_command(argc, argv);
  if (!rest.empty()) refuse(argv[0], fmt::format("unexpected argument '{}'", rest.front()));
}

std::vector<std::string> Options::parse_command(int argc, char** argv) const {
  constexpr int kHelp = 1;
  constexpr int kFirstFlag = 1000;
  std::vector<option> table;
  table.reserve(flags_.size() + 2);
  for (const Flag& flag : flags_) {
    table.push_back({flag.name.c_str(), flag.placeholder.empty() ? no_argument : required_argument,
                     nullptr, kFirstFlag + static_cast<int>(table.size())});
  }
  table.push_back({"help", no_argument, nullptr, kHelp});
  table.push_back({nullptr, 0, nullptr, 0});

  ::opterr = 0;
  for (;;) {
    const int before = ::optind;
    const int found =
        ::getopt_long(argc, argv, "+:", table.data(), nullptr);  // NOLINT(concurrency-mt-unsafe)
    if (found == -1) return {argv + ::optind, argv + argc};
    const std::string given = argv[before];
    if (found == kHelp) {
      const bool told = std::fputs(usage(argv[0]).c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
      std::exit(told ? 0 : 1);  // NOLINT(concurrency-mt-unsafe): no thread is there yet
    }
    if (found == ':') refuse(argv[0], fmt::format("{} needs a value", given));
    if (found < kFirstFlag) refuse(argv[0], fmt::format("unknown flag '{}'", given));
    const Flag& flag = flags_[static_cast<std::size_t>(found - kFirstFlag)];
    if (!flag.set(::optarg != nullptr ? ::optarg : "")) {
      refuse(argv[0], fmt::format("--{} takes {}, not '{}'", flag.name, flag.expects, ::optarg));
    }
  }
}

std::string Options::usage(const char* program) const {
  std::string text = fmt::format("usage: {} [flags]\n{}\n\n", program, summary_);
  for (const Flag& flag : flags_) {
    text += fmt::format("  {:<26} {}\n", fmt::format("--{} {}", flag.name, flag.placeholder),
                        flag.meaning);
  }
  text += fmt::format("  {:<26} {}\n", "--help", "print this and exit");
  return text;
}

void Options::refuse(const char* program, const std::string& reason) const {
  (void)std::fputs(fmt::format("{}: {}\n{}", program, reason, usage(program)).c_str(), stderr);
  std::exit(2);  // NOLINT(concurrency-mt-unsafe): no thread is there yet
}

std::optional<std::chrono::milliseconds> parse_duration(std::string_view text) {
  constexpr std::int64_t kLongest = 2'147'483'647;  // what poll and epoll_wait take, in ms: 24 days
  for (const Unit& unit : kUnits) {
    std::int64_t count = 0;
    if (!text.ends_with(unit.name)) continue;
    const std::string_view number = text.substr(0, text.size() - unit.name.size());
    if (parse_number<std::int64_t>(number, 1, kLongest / unit.milliseconds, count)) {
      return std::chrono::milliseconds(count * unit.milliseconds);
    }
  }
  return std::nullopt;
}

std::string to_text(std::chrono::milliseconds duration) {
  for (const Unit& unit : kUnits) {
    if (duration.count() % unit.milliseconds == 0)
      return fmt::format("{}{}", duration.count() / unit.milliseconds, unit.name);
  }
  return {};  // not reached: every count is a multiple of 1 ms
}

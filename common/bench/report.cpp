#include "common/bench/report.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>

namespace {

double us(std::uint64_t ns) { return static_cast<double>(ns) / 1e3; }
double ms(std::uint64_t ns) { return static_cast<double>(ns) / 1e6; }

// The members of the object. Texts are from strerror and from us: nothing in them needs
// to be escaped.
std::string members(const LoadPlan& plan, const LoadResult& r) {
  std::string text = fmt::format(
      "\"clients\": {}, \"idle\": {}, \"slow\": {}, \"size\": {}, \"threads\": {}, "
      "\"depth\": {}, \"rate\": {}, \"seconds\": {:.3f},\n ",
      plan.clients, plan.idle, plan.slow, plan.size, plan.threads, plan.depth, plan.rate,
      r.seconds);
  text += fmt::format(
      "\"held\": {}, \"idle_held\": {}, \"refused\": {}, \"unserved\": {}, \"broken\": {}, "
      "\"idle_lost\": {}, \"first_problem\": \"{}\",\n ",
      r.held, r.idle_held, r.refused, r.unserved, r.broken, r.idle_lost, r.first_problem);
  text += fmt::format(
      "\"answered\": {}, \"requests_per_second\": {:.1f}, \"measured\": {}, \"unanswered\": {}, "
      "\"slow_answered\": {}, \"mismatched_bytes\": {},\n ",
      r.answered, r.requests_per_second(), r.latency.count(), r.unanswered, r.slow_answered,
      r.mismatched_bytes);
  text += fmt::format(
      "\"p50_us\": {:.1f}, \"p90_us\": {:.1f}, \"p99_us\": {:.1f}, \"p99_9_us\": {:.1f}, "
      "\"max_us\": {:.1f},\n ",
      us(r.latency.quantile(0.5)), us(r.latency.quantile(0.9)), us(r.latency.quantile(0.99)),
      us(r.latency.quantile(0.999)), us(r.latency.max()));
  text += fmt::format(
      "\"late_p50_us\": {:.1f}, \"late_p99_us\": {:.1f}, \"late_max_us\": {:.1f}, "
      "\"generator_cpu_share\": {:.3f}, \"bottleneck\": \"{}\"",
      us(r.lateness.quantile(0.5)), us(r.lateness.quantile(0.99)), us(r.lateness.max()),
      r.cpu_share, r.bottleneck());
  return text;
}

}  // namespace

void add_flags(Options& options, LoadPlan& plan) {
  options.add("clients", plan.clients, "connections that send");
  options.add("idle", plan.idle, "connections that say nothing, beside them");
  options.add("slow", plan.slow, "connections whose requests begin with '#', for a --work server");
  options.add("size", plan.size, "bytes of a message");
  options.add("threads", plan.threads, "threads that the connections are shared out to");
  options.add("depth", plan.depth, "messages under way on a connection, in a closed loop");
  options.add("rate", plan.rate, "messages a second in all; without it a closed loop");
  options.add("warmup", plan.warmup, "load before what is measured");
  options.add("duration", plan.duration, "what is measured");
}

std::string what_is_wrong_with(const LoadPlan& plan) {
  if (plan.threads > plan.clients) return "there are more --threads than --clients";
  if (plan.rate > 0 && plan.depth > 1) return "--depth is of a closed loop, --rate of an open one";
  return {};
}

ProgressLine::ProgressLine() : terminal_(::isatty(STDERR_FILENO) == 1) {}
ProgressLine::~ProgressLine() { show(""); }

void ProgressLine::show(const std::string& text) const {
  if (terminal_) (void)std::fputs(("\r\033[K" + text).c_str(), stderr);
}

std::string as_text(const LoadPlan& plan, const LoadResult& r) {
  std::string text = fmt::format(
      "{} connections{}{}, messages of {} bytes, {}; {} after {} of warm-up\n", r.held,
      r.idle_held > 0 ? fmt::format(", {} idle ones", r.idle_held) : "",
      plan.slow > 0 ? fmt::format(", {} slow ones ({} answers)", plan.slow, r.slow_answered) : "",
      plan.size,
      plan.rate > 0 ? fmt::format("open loop at {} a second", plan.rate)
                    : fmt::format("closed loop of depth {}", plan.depth),
      to_text(plan.duration), to_text(plan.warmup));
  text += fmt::format("answers      {:.0f} a second\n", r.requests_per_second());
  text +=
      fmt::format("latency, ms  p50 {:.3f}  p90 {:.3f}  p99 {:.3f}  p99.9 {:.3f}  max {:.3f}\n",
                  ms(r.latency.quantile(0.5)), ms(r.latency.quantile(0.9)),
                  ms(r.latency.quantile(0.99)), ms(r.latency.quantile(0.999)), ms(r.latency.max()));
  text += fmt::format("connections  {} refused, {} not served, {} broken, {} idle ones broken{}\n",
                      r.refused, r.unserved, r.broken, r.idle_lost,
                      r.first_problem.empty() ? "" : fmt::format(" (first: {})", r.first_problem));
  text += fmt::format("messages     {} unanswered, {} bytes came back changed\n", r.unanswered,
                      r.mismatched_bytes);
  text += fmt::format("generator    {:.0f} % of a core", 100 * r.cpu_share);
  if (plan.rate > 0) {
    text += fmt::format(", sends late by p50 {:.3f} ms, p99 {:.3f} ms",
                        ms(r.lateness.quantile(0.5)), ms(r.lateness.quantile(0.99)));
  }
  text += "\n";
  if (const std::string why = r.bottleneck(); !why.empty()) {
    text += fmt::format("The generator was the bottleneck: {}.\n", why);
  }
  return text;
}

std::string as_json(const LoadPlan& plan, const LoadResult& result) {
  return fmt::format("{{{}}}\n", members(plan, result));
}

std::string as_json(const LoadPlan& plan, const Measurement& m) {
  return fmt::format(
      "{{{},\n \"cpu_us\": {:.3f}, \"switches\": {:.4f}, \"system_share\": {:.3f}, "
      "\"cores\": {:.3f}, \"server_threads\": {}, \"kib_per_connection\": {:.3f}, "
      "\"resident_kib\": {}}}\n",
      members(plan, m.load), m.cpu_us, m.switches, m.system_share, m.cores, m.threads,
      m.kib_per_connection, m.resident / 1024);
}

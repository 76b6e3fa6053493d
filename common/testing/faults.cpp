#include "common/testing/faults.h"

#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <thread>

#include "common/socket/process.h"
#ifdef __linux__
#include <sched.h>

#include <csignal>
#endif

namespace {

// The command under strace with `flags`; strace writes to `path`.
Command traced(const Command& command, const std::string& path,
               const std::vector<std::string>& flags) {
  if (!is_installed("strace")) skip("strace is not installed");
  const Run probe = run_to_end({.argv = {"strace", "-o", "/dev/null", "true"}, .environment = {}});
  if (probe.exit.code != 0) skip("strace may not trace here: {}", probe.errors);
  // -D: strace is the child, so that the process we started is the server itself.
  std::vector<std::string> wrapper = {"strace", "-D", "-f", "-qq", "-o", path};
  wrapper.insert(wrapper.end(), flags.begin(), flags.end());
  Command wrapped = command.under(wrapper);
  wrapped.environment.emplace_back("ASAN_OPTIONS=detect_leaks=0");  // cannot be traced twice
  return wrapped;
}

}  // namespace

Command under_strace(const Command& command, const std::vector<std::string>& injections) {
  std::vector<std::string> flags;
  std::string calls;  // one list: a second -e trace would replace the first
  for (const std::string& injection : injections) {
    calls += (calls.empty() ? "trace=" : ",") + injection.substr(0, injection.find(':'));
    flags.insert(flags.end(), {"-e", "inject=" + injection});
  }
  flags.insert(flags.end(), {"-e", calls});
  return traced(command, "/dev/null", flags);
}

#ifdef __linux__
void signal_first_thread(const ServerProcess& server, int number) {
  if (::tgkill(server.pid(), server.pid(), number) != 0)
    throw std::system_error(errno, std::system_category(), "tgkill");
}
#else
void signal_first_thread(const ServerProcess&, int) { skip("only Linux can signal one thread"); }
#endif

CallLog::CallLog(const Command& command, const std::string& calls)
    : path_(std::filesystem::temp_directory_path() / "calls-XXXXXX") {
  const Fd file(::mkstemp(path_.data()));
  if (!file) throw std::system_error(errno, std::system_category(), path_);
  command_ = traced(command, path_, {"-e", "trace=" + calls, "-e", "signal=none"});
}

CallLog::~CallLog() {
  std::error_code gone;
  std::filesystem::remove(path_, gone);
}

std::vector<std::string> CallLog::lines() const {
  std::vector<std::string> lines;
  std::ifstream file(path_);
  // Each line begins with a thread number.
  for (std::string line; std::getline(file, line);)
    lines.push_back(line.substr(std::min(line.size(), line.find_first_not_of("0123456789 "))));
  return lines;
}

std::size_t CallLog::count(const std::string& call) const {
  const auto all = lines();
  return static_cast<std::size_t>(std::count_if(
      all.begin(), all.end(), [&](const auto& line) { return line.starts_with(call + "("); }));
}

Command under_fiu(const Command& command, const std::vector<std::string>& points) {
  if (kSanitized) skip("libfiu and a sanitizer cannot both stand before the C library");
  if (!is_installed("fiu-run"))
    skip("fiu-run is not installed (Debian: apt-get install fiu-utils)");
  std::vector<std::string> wrapper = {"fiu-run", "-x", "-f", ""};
  for (const std::string& point : points) wrapper.insert(wrapper.end(), {"-c", point});
  return command.under(wrapper);
}

void need_libfiu_inside(ServerProcess& server) {
  if (!server.running()) return;  // the server is missing, not the injection
  std::ifstream maps(fmt::format("/proc/{}/maps", server.pid()));
  for (std::string line; std::getline(maps, line);) {
    if (line.find("fiu_posix_preload") != std::string::npos) return;
  }
  skip("libfiu cannot reach into this program: it does not call through the C library");
}

void with_tiny_send_buffers(int bytes, const std::function<void()>& body) {
#ifdef __linux__
  std::exception_ptr thrown;
  std::thread inside([&] {
    try {
      // For this thread and the processes it starts.
      if (::unshare(CLONE_NEWNET) != 0)
        skip("no private network: {} (run as root, or under unshare -r)", error_text(errno));
      const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      ifreq loopback = {};
      std::strcpy(loopback.ifr_name, "lo");
      loopback.ifr_flags = IFF_UP;
      if (::ioctl(socket.get(), SIOCSIFFLAGS, &loopback) != 0)
        skip("no loopback: {}", error_text(errno));
      std::ofstream("/proc/sys/net/ipv4/tcp_wmem")
          << fmt::format("{0} {0} {0}\n", bytes) << std::flush;
      int now = 0;
      std::ifstream("/proc/sys/net/ipv4/tcp_wmem") >> now;
      if (now != bytes) skip("net.ipv4.tcp_wmem cannot be set here");
      body();
    } catch (...) {
      thrown = std::current_exception();
    }
  });
  inside.join();
  if (thrown) std::rethrow_exception(thrown);
#else
  (void)bytes, (void)body;
  skip("no network namespaces here");
#endif
}

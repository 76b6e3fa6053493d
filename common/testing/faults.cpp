#include "common/testing/faults.h"

#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <thread>

#include "common/socket/process.h"
#ifdef __linux__
#include <sched.h>
#endif

Command under_strace(const Command& command, const std::vector<std::string>& injections) {
  if (!is_installed("strace")) skip("strace is not installed");
  const Run probe = run_to_end({.argv = {"strace", "-o", "/dev/null", "true"}, .environment = {}});
  if (probe.exit.code != 0) skip("strace may not trace here: {}", probe.errors);
  // -D: strace is the child, so that the process we started is the server itself.
  std::vector<std::string> wrapper = {"strace", "-D", "-f", "-qq", "-o", "/dev/null"};
  std::string traced;  // one list: a second -e trace would replace the first
  for (const std::string& injection : injections) {
    traced += (traced.empty() ? "trace=" : ",") + injection.substr(0, injection.find(':'));
    wrapper.insert(wrapper.end(), {"-e", "inject=" + injection});
  }
  wrapper.insert(wrapper.end(), {"-e", traced});
  Command wrapped = command.under(wrapper);
  wrapped.environment.emplace_back("ASAN_OPTIONS=detect_leaks=0");  // it cannot be traced twice
  return wrapped;
}

Command under_fiu(const Command& command, const std::vector<std::string>& points) {
  if (kSanitized) skip("libfiu and a sanitizer cannot both stand before the C library");
  if (!is_installed("fiu-run"))
    skip("fiu-run is not installed (Debian: apt-get install fiu-utils)");
  std::vector<std::string> wrapper = {"fiu-run", "-x", "-f", ""};
  for (const std::string& point : points) wrapper.insert(wrapper.end(), {"-c", point});
  return command.under(wrapper);
}

void need_libfiu_inside(const ServerProcess& server) {
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
        skip("no private network: {} (run as root)", error_text(errno));
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

#include "common/testing/server_process.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "common/socket/process.h"
#include "common/socket/socket.h"
#ifdef __linux__
#include <sys/prctl.h>
#endif

namespace {

constexpr std::string_view kPortHole = "{port}";
constexpr std::string_view kListening = "listening on ";

// An unnamed file that catches what a child writes, however much that is.
Fd capture_file() {
  std::FILE* file = std::tmpfile();
  if (file == nullptr) throw std::system_error(errno, std::system_category(), "tmpfile");
  Fd fd(::fcntl(::fileno(file), F_DUPFD_CLOEXEC, 3));
  (void)std::fclose(file);
  return fd;
}

std::string contents(const Fd& file) {
  std::string text;
  std::array<char, 4096> buffer;
  for (;;) {
    const ssize_t n =
        ::pread(file.get(), buffer.data(), buffer.size(), static_cast<off_t>(text.size()));
    if (n <= 0) return text;
    text.append(buffer.data(), static_cast<std::size_t>(n));
  }
}

std::uint16_t free_port() {
  const std::string text = to_text(local_address(listen_on(resolve("127.0.0.1", 0))));
  return static_cast<std::uint16_t>(std::stoi(text.substr(text.rfind(':') + 1)));
}

// Between fork and exec only calls that are safe there: this is the child.
[[noreturn]] void become(const std::vector<char*>& argv, const std::vector<char*>& environment,
                         const Command& command, int out, int err) {
#ifdef __linux__
  // A test that is killed leaves no server behind. Elsewhere Ctrl-C must reach the server
  // as it does the test, so there it stays in the test's group.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::setpgid(0, 0);  // its children are in its group: counted with it, killed with it
#endif
  // Ignored and blocked signals are inherited. An ignored SIGPIPE would hide the server's
  // mistake, and a shell that ran this program in the background ignores SIGINT.
  for (int number = 1; number < NSIG; ++number) std::signal(number, SIG_DFL);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): SIG_IGN is such a cast
  for (const int number : command.ignored_signals) std::signal(number, SIG_IGN);
  sigset_t blocked;
  ::sigemptyset(&blocked);
  for (const int number : command.blocked_signals) ::sigaddset(&blocked, number);
  ::sigprocmask(SIG_SETMASK, &blocked, nullptr);

  rlimit limit = {};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (command.descriptor_limit != 0) limit.rlim_cur = limit.rlim_max = command.descriptor_limit;
  if (command.soft_descriptor_limit != 0) limit.rlim_cur = command.soft_descriptor_limit;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  // What our own parent left open is not the server's: its descriptors start at 3.
  for (int fd = 3; fd < 1024; ++fd) ::close(fd);
  for (std::size_t i = 0; i < command.inherited; ++i) ::open("/dev/null", O_RDONLY);
  for (const int fd : command.closed_descriptors) ::close(fd);
  // NOLINTNEXTLINE(concurrency-mt-unsafe): this process has one thread
  for (char* variable : environment) ::putenv(variable);
  ::execvp(argv[0], argv.data());
  const std::string reason = error_text(errno);
  for (const char* part :
       {"cannot run ", static_cast<const char*>(argv[0]), ": ", reason.c_str(), "\n"}) {
    if (::write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  }
  ::_exit(127);
}

pid_t start(const std::vector<std::string>& arguments, const Command& command, const Fd& out,
            const Fd& err) {
  std::vector<std::string> texts = arguments;
  std::vector<std::string> variables = command.environment;
  // A race or an overflow ends the server at once, so that the check sees it.
  // NOLINTNEXTLINE(concurrency-mt-unsafe): nobody sets the environment
  if (std::getenv("TSAN_OPTIONS") == nullptr)
    variables.emplace_back("TSAN_OPTIONS=halt_on_error=1");
  std::vector<char*> argv;
  argv.reserve(texts.size() + 1);
  for (std::string& text : texts) argv.push_back(text.data());
  argv.push_back(nullptr);
  std::vector<char*> environment;
  environment.reserve(variables.size());
  for (std::string& text : variables) environment.push_back(text.data());

  const pid_t pid = ::fork();
  if (pid < 0) throw std::system_error(errno, std::system_category(), "fork");
  if (pid == 0) become(argv, environment, command, out.get(), err.get());
  return pid;
}

bool accepts_connections(const Address& address) {
  try {
    const Fd socket = connect_to(address);
    bool connected = false;
    wait_until(100ms, [&] {
      sockaddr_storage peer = {};
      socklen_t size = sizeof(peer);
      connected = ::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&peer), &size) == 0;
      return connected || connect_error(socket) != 0;
    });
    return connected;
  } catch (const std::system_error&) {
    return false;  // refused at once: it does not listen yet
  }
}

#ifdef __linux__
// What follows the name, which stands in brackets, in /proc/PID/stat. Source: proc(5).
std::istringstream stat_of(const std::filesystem::path& process) {
  std::string stat;
  std::getline(std::ifstream(process / "stat"), stat);
  const std::size_t name_ends = stat.rfind(')');
  return std::istringstream(name_ends == std::string::npos ? "" : stat.substr(name_ends + 1));
}

// The processes of a group: state, parent and group come first in /proc/PID/stat.
std::vector<pid_t> group_of(pid_t leader) {
  std::vector<pid_t> members;
  std::error_code gone;  // processes come and go while we look
  for (const auto& entry : std::filesystem::directory_iterator("/proc", gone)) {
    std::istringstream stat = stat_of(entry.path());
    std::string state;
    pid_t parent = 0;
    pid_t group = 0;
    if (stat >> state >> parent >> group && group == leader && state != "Z") {
      members.push_back(std::stoi(entry.path().filename()));
    }
  }
  return members;
}

// User and system time of all threads, in ticks: the 14th and 15th field.
void add_times(std::istringstream stat, Usage& usage) {
  const std::chrono::nanoseconds tick(1'000'000'000 / ::sysconf(_SC_CLK_TCK));
  std::string other;
  for (int field = 3; field < 14; ++field) stat >> other;
  std::int64_t user = 0;
  std::int64_t system = 0;
  if (stat >> user >> system) {
    usage.user = user * tick;
    usage.system = system * tick;
  }
}

// What one process uses; nothing if it has just ended.
Usage usage_of(pid_t pid) {
  Usage usage;
  clockid_t clock = 0;
  timespec time = {};
  if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &time) != 0) return usage;
  usage.cpu = std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);

  const std::string proc = fmt::format("/proc/{}", pid);
  add_times(stat_of(proc), usage);
  std::ifstream status(proc + "/status");
  std::string key;
  while (status >> key) {
    std::size_t value = 0;
    if (key == "VmRSS:" && status >> value) usage.resident = value * 1024;
    if (key == "VmSize:" && status >> value) usage.address_space = value * 1024;
    if (key == "VmPTE:" && status >> value) usage.page_tables = value * 1024;
    if (key == "Threads:" && status >> value) usage.threads = value;
    status.ignore(4096, '\n');
  }
  std::error_code gone;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator(proc + "/fd", gone)) {
    ++usage.descriptors;
  }
  return usage;
}
#endif

Address parse_address(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  std::string host = text.substr(0, colon);
  if (host.starts_with('[')) host = host.substr(1, host.size() - 2);
  return resolve(host, static_cast<std::uint16_t>(std::stoi(text.substr(colon + 1))));
}

}  // namespace

Command Command::with(const std::vector<std::string>& flags) const {
  Command longer = *this;
  longer.argv.insert(longer.argv.end(), flags.begin(), flags.end());
  return longer;
}

Command Command::under(const std::vector<std::string>& wrapper) const {
  Command wrapped = *this;
  wrapped.argv.insert(wrapped.argv.begin(), wrapper.begin(), wrapper.end());
  return wrapped;
}

bool Command::port_is_given() const {
  return std::any_of(argv.begin(), argv.end(), [](const std::string& argument) {
    return argument.find(kPortHole) != std::string::npos;
  });
}

std::string Exit::text() const {
  if (!signalled) return fmt::format("exit code {}", code);
  // NOLINTNEXTLINE(concurrency-mt-unsafe): tests ask from one thread
  return fmt::format("killed by signal {} ({})", code, ::strsignal(code));
}

ServerProcess::ServerProcess(const Command& command)
    : stdout_(capture_file()), stderr_(capture_file()) {
  ignore_sigpipe();  // a test must survive the server that it kills
  std::vector<std::string> argv = command.argv;
  const std::uint16_t port = command.port_is_given() ? free_port() : std::uint16_t{0};
  for (std::string& argument : argv) {
    if (const std::size_t hole = argument.find(kPortHole); hole != std::string::npos) {
      argument.replace(hole, kPortHole.size(), std::to_string(port));
    }
  }
  if (port == 0) argv.insert(argv.end(), {"--port", "0"});
  pid_ = start(argv, command, stdout_, stderr_);

  const bool up = wait_until(patience, [&] {
    if (!running()) return true;
    if (port == 0) return output().find('\n') != std::string::npos;
    return accepts_connections(resolve("127.0.0.1", port));
  });
  const std::string line = output().substr(0, output().find('\n'));
  if (!up || !running() || (port == 0 && !line.starts_with(kListening))) {
    const std::string fate = exit_ ? exit_->text() : "still running";
    const std::string report = fmt::format("{} does not listen: {}, stdout \"{}\", stderr \"{}\"",
                                           argv[0], fate, output(), errors());
    end();
    throw Failure(report);
  }
  try {
    address_ =
        port == 0 ? parse_address(line.substr(kListening.size())) : resolve("127.0.0.1", port);
  } catch (const std::exception&) {
    end();
    fail("{} says \"{}\", which is no address", argv[0], line);
  }
}

ServerProcess::~ServerProcess() { end(); }

void ServerProcess::end() {
  ::kill(-pid_, SIGKILL);  // the group, if it has one: it may outlive the process we started
  signal(SIGKILL);
  wait_for_exit(patience);
}

void ServerProcess::signal(int number) {
  if (running()) ::kill(pid_, number);
}

void ServerProcess::freeze() {
  signal(SIGSTOP);
#ifdef __linux__
  // It stops when it is next seen by its CPU. T: stopped; t: stopped under strace, where
  // it also is for a moment at each call. Source: proc(5).
  int seen = 0;
  const bool stopped = wait_until(patience, [&] {
    char state = '?';
    stat_of(fmt::format("/proc/{}", pid_)) >> state;
    seen = state == 'T' || state == 't' ? seen + 1 : 0;
    return seen == 20;
  });
  if (!stopped) fail("the server does not stop at SIGSTOP");
#else
  std::this_thread::sleep_for(20ms);  // no /proc to see it; if it is too short, less is tried
#endif
}

void ServerProcess::thaw() { signal(SIGCONT); }

std::optional<Exit> ServerProcess::wait_for_exit(milliseconds limit) {
  wait_until(limit, [this] {
    int status = 0;
    if (!exit_ && ::waitpid(pid_, &status, WNOHANG) == pid_) {
      exit_ = WIFSIGNALED(status) ? Exit{true, WTERMSIG(status)} : Exit{false, WEXITSTATUS(status)};
    }
    return exit_.has_value();
  });
  return exit_;
}

std::string ServerProcess::output() const { return contents(stdout_); }
std::string ServerProcess::errors() const { return contents(stderr_); }

Usage ServerProcess::usage() const {
#ifdef __linux__
  Usage sum;
  for (const pid_t member : group_of(pid_)) {
    const Usage one = usage_of(member);
    sum.cpu += one.cpu;
    sum.user += one.user;
    sum.system += one.system;
    sum.resident += one.resident;
    sum.address_space += one.address_space;
    sum.page_tables += one.page_tables;
    sum.threads += one.threads;
    sum.descriptors += one.descriptors;
  }
  if (sum.threads == 0) fail("the server has ended");
  return sum;
#else
  skip("no /proc here to read the server's CPU time and memory from");
#endif
}

std::size_t ServerProcess::context_switches() const {
  std::size_t sum = 0;
  std::error_code no_proc;
  for (const auto& thread :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid_), no_proc)) {
    std::ifstream status(thread.path() / "status");
    std::string key;
    while (status >> key) {
      std::size_t value = 0;
      if (key.ends_with("voluntary_ctxt_switches:") && status >> value) sum += value;
      status.ignore(4096, '\n');
    }
  }
  return sum;
}

double ServerProcess::cpu_percent(milliseconds window) const {
  const auto start = Clock::now();
  const auto before = usage().cpu;
  std::this_thread::sleep_for(window);
  const std::chrono::duration<double> used = usage().cpu - before;
  return 100 * used / std::chrono::duration<double>(Clock::now() - start);
}

Run run_to_end(const Command& command, milliseconds limit) {
  const Fd out = capture_file();
  const Fd err = capture_file();
  const pid_t pid = start(command.argv, command, out, err);
  int status = 0;
  const bool ended = wait_until(limit, [&] { return ::waitpid(pid, &status, WNOHANG) == pid; });
  if (!ended) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, &status, 0);
    fail("{} did not end within {} ms; stdout \"{}\", stderr \"{}\"", command.argv[0],
         limit.count(), contents(out), contents(err));
  }
  const Exit exit =
      WIFSIGNALED(status) ? Exit{true, WTERMSIG(status)} : Exit{false, WEXITSTATUS(status)};
  return {exit, contents(out), contents(err)};
}

bool is_installed(const std::string& program) {
  const char* path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  std::string_view folders = path != nullptr ? path : "";
  while (!folders.empty()) {
    const std::size_t end = std::min(folders.find(':'), folders.size());
    const std::string candidate = fmt::format("{}/{}", folders.substr(0, end), program);
    if (::access(candidate.c_str(), X_OK) == 0) return true;
    folders.remove_prefix(std::min(end + 1, folders.size()));
  }
  return false;
}

#include "common/testing/server_process.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/ranges.h>
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
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "common/socket/process.h"
#include "common/socket/socket.h"
#include "common/testing/client.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

extern char** environ;  // NOLINT(readability-redundant-declaration): macOS does not declare it

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

// The file that the command `program` means; "" and errno if there is none.
std::string find_program(const std::string& program) {
  if (program.find('/') != std::string::npos)
    return ::access(program.c_str(), X_OK) == 0 ? program : "";
  const char* path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): it never changes
  std::istringstream folders(path != nullptr ? path : "");
  errno = ENOENT;
  for (std::string folder; std::getline(folders, folder, ':');) {
    folder += "/" + program;
    if (::access(folder.c_str(), X_OK) == 0) return folder;
  }
  return "";
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  pointers.reserve(texts.size() + 1);
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Our environment with the variables ("NAME=value") in place of those of the same name.
std::vector<std::string> environment_with(std::vector<std::string> variables) {
  // A race or an overflow ends the server at once, so that the check sees it.
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the environment never changes
  if (std::getenv("TSAN_OPTIONS") == nullptr)
    variables.emplace_back("TSAN_OPTIONS=halt_on_error=1");
  const std::size_t own = variables.size();
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    const std::string_view name = text.substr(0, text.find('=') + 1);
    if (std::none_of(variables.begin(), variables.begin() + static_cast<std::ptrdiff_t>(own),
                     [name](const std::string& given) { return given.starts_with(name); }))
      variables.emplace_back(text);
  }
  return variables;
}

// The child between fork and exec. Another thread may have held a lock at the fork, the
// allocator's for one, so there are only system calls here (signal-safety(7)).
[[noreturn]] void become(const std::string& program, const std::vector<char*>& argv,
                         const std::vector<char*>& environment, const std::string& complaint,
                         const Command& command, int out, int err) {
  // Its children are in its group: counted with it, and killed with it. A server that
  // signals its group does not reach us, nor does our Ctrl-C reach the server. (A session
  // would do too, but Linux may schedule each session as one: sched(7), autogroup.)
  ::setpgid(0, 0);
  // Ignored and blocked signals are inherited. An ignored SIGPIPE would hide the server's
  // mistake, and a shell that ran this program in the background ignores SIGINT.
  for (int number = 1; number < NSIG; ++number) std::signal(number, SIG_DFL);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): SIG_IGN is such a cast
  for (const int number : command.ignored_signals) std::signal(number, SIG_IGN);
  sigset_t blocked;
  sigemptyset(&blocked);  // macros on macOS, so without "::"
  for (const int number : command.blocked_signals) sigaddset(&blocked, number);
  ::pthread_sigmask(SIG_SETMASK, &blocked, nullptr);

  rlimit limit = {};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const auto most = static_cast<rlim_t>(command.descriptor_limit);
  const auto soft = static_cast<rlim_t>(command.soft_descriptor_limit);
  if (most != 0) limit.rlim_cur = limit.rlim_max = most;
  if (soft != 0) limit.rlim_cur = soft;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  // What our parent left open is not for the server, whose descriptors start at 3.
  for (int fd = 3; fd < 1024; ++fd) ::close(fd);
  for (std::size_t i = 0; i < command.inherited; ++i) ::open("/dev/null", O_RDONLY);
  for (const int fd : command.closed_descriptors) ::close(fd);
  ::execve(program.c_str(), argv.data(), environment.data());
  (void)!::write(STDERR_FILENO, complaint.data(), complaint.size());
  ::_exit(127);
}

bool accepts_connections(const Address& address) {
  try {
    const Client client(address, 100ms);
    return true;
  } catch (const std::runtime_error&) {  // refused, at once or later: it does not listen yet
    return false;
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

// The processes whose parent, or whose group, is `number`: fields 4 and 5 of
// /proc/PID/stat. Zombies are left out.
enum class By { parent, group };
std::vector<pid_t> processes(By field, pid_t number) {
  std::vector<pid_t> found;
  std::error_code gone;  // processes come and go while we look
  for (const auto& entry : std::filesystem::directory_iterator("/proc", gone)) {
    std::istringstream stat = stat_of(entry.path());
    std::string state;
    pid_t parent = 0;
    pid_t group = 0;
    if (stat >> state >> parent >> group && state != "Z" &&
        (field == By::parent ? parent : group) == number) {
      found.push_back(std::stoi(entry.path().filename()));
    }
  }
  return found;
}

// Adds what one process uses; nothing if it has just ended.
void add_usage_of(pid_t pid, Usage& sum) {
  clockid_t clock = 0;
  timespec time = {};
  if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &time) != 0) return;
  sum.cpu += std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);

  // User and system time of all threads, in ticks: the 14th and 15th field.
  const std::string proc = fmt::format("/proc/{}", pid);
  const std::chrono::nanoseconds tick(1'000'000'000 / ::sysconf(_SC_CLK_TCK));
  std::istringstream stat = stat_of(proc);
  std::string other;
  for (int field = 3; field < 14; ++field) stat >> other;
  std::int64_t user = 0;
  std::int64_t system = 0;
  if (stat >> user >> system) {
    sum.user += user * tick;
    sum.system += system * tick;
  }
  std::ifstream status(proc + "/status");
  std::string key;
  while (status >> key) {
    std::size_t value = 0;
    if (key == "VmRSS:" && status >> value) sum.resident += value * 1024;
    if (key == "VmSize:" && status >> value) sum.address_space += value * 1024;
    if (key == "VmPTE:" && status >> value) sum.page_tables += value * 1024;
    if (key == "Threads:" && status >> value) sum.threads += value;
    status.ignore(4096, '\n');
  }
  std::error_code gone;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator(proc + "/fd", gone)) {
    ++sum.descriptors;
  }
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
  wrapped.wrapped_in += wrapper.size();
  return wrapped;
}

std::string Command::name() const {
  return fmt::to_string(
      fmt::join(argv.begin() + static_cast<std::ptrdiff_t>(wrapped_in), argv.end(), " "));
}

bool Command::port_is_given() const {
  return std::any_of(argv.begin(), argv.end(), [](const std::string& argument) {
    return argument.find(kPortHole) != std::string::npos;
  });
}

Exit exit_of(int status) {
  return WIFSIGNALED(status) ? Exit{true, WTERMSIG(status)} : Exit{false, WEXITSTATUS(status)};
}

std::string Exit::text() const {
  if (!signalled) return fmt::format("exit code {}", code);
  // NOLINTNEXTLINE(concurrency-mt-unsafe): tests ask from one thread
  return fmt::format("killed by signal {} ({})", code, ::strsignal(code));
}

// The guard kills the server's group when the pipe to it is closed: by our destructor, or
// by the kernel when this process ends, whatever ends it. (PR_SET_PDEATHSIG would kill the
// server when the *thread* that started it ends, would spare its children, and is Linux-only.)
ServerProcess::ServerProcess()
    : stdout_(capture_file()),
      stderr_(capture_file()),
      guard_(::popen("trap '' HUP INT QUIT TERM; read group; read end;"
                     " kill -KILL -$group 2>/dev/null",
                     "w"),
             ::pclose) {
  if (!guard_) throw std::system_error(errno, std::system_category(), "popen");
  // No server must hold our end open; become() closes only the first 1024 descriptors.
  ::fcntl(::fileno(guard_.get()), F_SETFD, FD_CLOEXEC);
  ignore_sigpipe();  // a test must survive the server that it kills
}

void ServerProcess::start(const Command& command, std::vector<std::string> arguments) {
  const std::string program = find_program(arguments[0]);
  const std::string complaint =
      fmt::format("cannot run {}: {}\n", arguments[0],
                  program.empty() ? error_text(errno) : "the system does not execute this file");
  const std::vector<char*> argv = pointers_to(arguments);
  std::vector<std::string> variables = environment_with(command.environment);
  const std::vector<char*> environment = pointers_to(variables);
  pid_ = ::fork();
  if (pid_ < 0) throw std::system_error(errno, std::system_category(), "fork");
  if (pid_ == 0)
    become(program, argv, environment, complaint, command, stdout_.get(), stderr_.get());
  fmt::print(guard_.get(), "{}\n", pid_);
  (void)std::fflush(guard_.get());
}

ServerProcess::ServerProcess(const Command& command) : ServerProcess() {
  std::vector<std::string> argv = command.argv;
  const std::uint16_t port = command.port_is_given() ? free_port() : std::uint16_t{0};
  for (std::string& argument : argv) {
    if (const std::size_t hole = argument.find(kPortHole); hole != std::string::npos) {
      argument.replace(hole, kPortHole.size(), std::to_string(port));
    }
  }
  if (port == 0) argv.insert(argv.end(), {"--port", "0"});
  start(command, argv);

  const bool up = wait_until(patience, [&] {
    if (!running()) return true;
    if (port == 0) return output().find('\n') != std::string::npos;
    return accepts_connections(resolve("127.0.0.1", port));
  });
  const std::string line = output().substr(0, output().find('\n'));
  if (!up || !running() || (port == 0 && !line.starts_with(kListening))) {
    throw NotListening(fmt::format("{} does not listen: {}, stdout \"{}\", stderr \"{}\"",
                                   command.name(), exit_ ? exit_->text() : "still running",
                                   output(), errors()));
  }
  try {
    address_ =
        port == 0 ? parse_address(line.substr(kListening.size())) : resolve("127.0.0.1", port);
  } catch (const std::exception&) {
    fail("{} says \"{}\", which is no address", command.name(), line);
  }
}

ServerProcess::~ServerProcess() {
  guard_.reset();         // the group may outlive the process that we started
  if (pid_ <= 0) return;  // it was never started
  signal(SIGKILL);
  wait_for_exit(patience);
}

void ServerProcess::signal(int number) {
  if (running()) ::kill(pid_, number);
}

void ServerProcess::freeze() {
  signal(SIGSTOP);
#ifdef __linux__
  // It stops when its CPU next sees the signal. T: stopped; t: stopped under strace, as
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
  std::this_thread::sleep_for(20ms);  // no /proc to see it; if too short, less is tried
#endif
}

void ServerProcess::thaw() { signal(SIGCONT); }

std::optional<Exit> ServerProcess::wait_for_exit(milliseconds limit) {
  wait_until(limit, [this] {
    int status = 0;
    if (!exit_ && ::waitpid(pid_, &status, WNOHANG) == pid_) exit_ = exit_of(status);
    return exit_.has_value();
  });
  return exit_;
}

std::string ServerProcess::output() const { return contents(stdout_); }
std::string ServerProcess::errors() const { return contents(stderr_); }

Usage ServerProcess::usage() const {
#ifdef __linux__
  Usage sum;
  for (const pid_t member : processes(By::group, pid_)) add_usage_of(member, sum);
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
  ServerProcess process;
  process.start(command, command.argv);
  const auto exit = process.wait_for_exit(limit);
  if (!exit) {
    fail("{} did not end within {} ms; stdout \"{}\", stderr \"{}\"", command.name(), limit.count(),
         process.output(), process.errors());
  }
  return {*exit, process.output(), process.errors()};
}

bool is_installed(const std::string& program) { return !find_program(program).empty(); }

#ifdef __linux__
void adopt_orphans() { ::prctl(PR_SET_CHILD_SUBREAPER, 1); }

bool end_children() {
  return wait_until(patience, [] {
    for (const pid_t child : processes(By::parent, ::getpid())) ::kill(child, SIGKILL);
    pid_t reaped = 1;
    while (reaped > 0) reaped = ::waitpid(-1, nullptr, WNOHANG);
    return reaped < 0;  // no child is left; grandchildren become our children first
  });
}
#else
void adopt_orphans() {}
bool end_children() { return true; }
#endif

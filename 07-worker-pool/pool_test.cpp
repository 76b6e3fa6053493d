// The pool alone, and jobs that throw, whose connection is closed, or whose queue is full.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <ctime>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/testing/chapter.h"
#include "common/testing/loop_under_test.h"
#include "worker_pool.h"

namespace {

// Jobs wait at the gate until it is opened. It counts them.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait_for(lock, patience, [this] { return open_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  bool reached_by(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, patience, [&] { return arrived_ >= count; });
  }
  int arrived() {
    const std::lock_guard lock(mutex_);
    return arrived_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  bool open_ = false;
};

void reply(Connection& conn, std::string_view result) { conn.write(result); }

// A request that begins with # becomes a job, which passes the gate. Any other is echoed at once.
EventLoop::OnRequest jobs_at(Gate& gate) {
  return [&gate](Connection& conn) {
    std::string request(conn.reader().next(conn.reader().len()));
    if (!request.starts_with('#')) return conn.write(request);
    conn.offload(
        [&gate, request] {
          gate.pass();
          return request;
        },
        reply);
  };
}

// The core of the calling thread, and a way to stay on it. Source: sched(7). On other systems
// the thread does not stay, and the test checks less.
int this_core() {
#ifdef __linux__
  return ::sched_getcpu();
#else
  return 0;
#endif
}

void stay_on([[maybe_unused]] int core) {
#ifdef __linux__
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(static_cast<std::size_t>(core), &cores);
  ::sched_setaffinity(0, sizeof cores, &cores);
#endif
}

// From now on, every other thread that is ready on this core runs before the calling thread.
void give_way() {
#ifdef __linux__
  const sched_param none = {};
  ::sched_setscheduler(0, SCHED_IDLE, &none);
#endif
}

std::size_t unfinished_jobs(LoopUnderTest& server) {
  std::size_t jobs = 0;
  server.run([&] { jobs = server.loop().unfinished_jobs(); });
  return jobs;
}

}  // namespace

TEST_CASE("pool-workers: five jobs, three workers: three run at once") {
  holds([] {
    Gate gate;
    WorkerPool pool(3, 10);
    for (int i = 0; i < 5; ++i) CHECK(pool.try_submit([&] { gate.pass(); }));
    CHECK(gate.reached_by(3));
    CHECK(gate.arrived() == 3);
    gate.open();
    CHECK(gate.reached_by(5));
  });
}

TEST_CASE("pool-queue: a full queue: another job is refused") {
  holds([] {
    Gate gate;
    WorkerPool pool(1, 2);
    CHECK(pool.try_submit([&] { gate.pass(); }));
    CHECK(gate.reached_by(1));  // the worker has the job, and the queue is empty
    CHECK(pool.try_submit([] {}));
    CHECK(pool.try_submit([] {}));
    CHECK_FALSE(pool.try_submit([] {}));
    gate.open();
    CHECK(wait_until(patience, [&] { return pool.try_submit([] {}); }));
  });
}

TEST_CASE("pool-end: the pool ends: queued jobs are dropped, running ones are waited for") {
  holds([] {
    Gate gate;
    std::atomic<bool> waiting_one_ran = false;
    std::atomic<bool> running_one_ended = false;
    auto pool = std::make_unique<WorkerPool>(1, 2);
    pool->try_submit([&] {
      gate.pass();
      running_one_ended = true;
    });
    CHECK(gate.reached_by(1));
    auto held = std::make_shared<int>();
    const std::weak_ptr<int> waiting_one = held;
    pool->try_submit([&, held = std::move(held)] { waiting_one_ran = true; });
    std::thread opener([&] {  // opens the gate when the destructor has dropped the waiting job
      CHECK(wait_until(patience / 2, [&] { return waiting_one.expired(); }));
      gate.open();
    });
    pool.reset();
    opener.join();
    CHECK(running_one_ended);
    CHECK_FALSE(waiting_one_ran);
  });
}

TEST_CASE("one-job-a-client: many requests of one client: one job at a time, replies in order") {
  holds([] {
    std::atomic<int> at_once = 0;
    std::atomic<int> most = 0;
    LoopUnderTest server(
        [&](Connection& conn) {
          std::string request(conn.reader().next(1));  // the rest stays in the reader
          conn.offload(
              [&, request] {
                most = std::max(most.load(), ++at_once);
                std::this_thread::sleep_for(1ms);
                --at_once;
                return request;
              },
              reply);
        },
        0ms, 4, 8);
    Client client(server.address());
    client.send("abcdefghijklmnopqrstuvwxyz");
    client.send("0123456789");
    CHECK(client.receive(36) == "abcdefghijklmnopqrstuvwxyz0123456789");
    CHECK(most == 1);
  });
}

TEST_CASE("three-steps: a request of three steps: a callback for each") {
  holds([] {
    // As if each asked a database, another server, a disk.
    const auto look_up = [](const std::string& name) { return "user of " + name; };
    const auto fetch = [](const std::string& user) { return "page of " + user; };
    const auto store = [](const std::string& page) { return std::to_string(page.size()); };
    const auto on_request = [&](Connection& conn) {
      const std::string name(conn.reader().next(conn.reader().len()));
      conn.offload([=] { return look_up(name); },
                   [=](Connection& one, const std::string& user) {
                     one.offload([=] { return fetch(user); },
                                 [=](Connection& two, const std::string& page) {
                                   two.offload([=] { return store(page); },
                                               [=](Connection& three, const std::string& size) {
                                                 three.write(size + ": " + page);
                                               });
                                 });
                   });
    };
    LoopUnderTest server(on_request);
    Client client(server.address());
    client.send("x");
    CHECK(client.receive(21) == "17: page of user of x");
  });
}

TEST_CASE(
    "reply-before-next-job: a client does not read its replies: its next job does not begin") {
  holds([] {
    constexpr std::size_t kReply = 1 << 20;
    std::atomic<int> jobs = 0;
    LoopUnderTest server([&](Connection& conn) {
      conn.reader().skip(1);
      conn.offload(
          [&] {
            ++jobs;
            return std::string(kReply, 'x');
          },
          reply);
    });
    Client client(server.address());
    client.send(std::string(40, '#'));
    int before = -1;  // until the buffers are full, and no job has begun for a while
    CHECK(wait_until(patience, [&] {
      std::this_thread::sleep_for(100ms);
      return std::exchange(before, jobs.load()) == jobs;
    }));
    CHECK(jobs < 20);
    client.receive(40 * kReply);
    CHECK(jobs == 40);
  });
}

TEST_CASE("second-job: a handler starts a second job for a connection: the connection is closed") {
  holds([] {
    LoopUnderTest server([](Connection& conn) {
      conn.offload([] { return std::string("first"); }, reply);
      conn.offload([] { return std::string("second"); }, reply);
    });
    Client client(server.address());
    client.send("x");
    CHECK(client.receive_until_end().empty());
  });
}

TEST_CASE("job-throws: a job throws: its connection is closed, and no other") {
  holds([] {
    LoopUnderTest server([](Connection& conn) {
      std::string request(conn.reader().next(conn.reader().len()));
      conn.offload(
          [request]() -> std::string {
            if (request == "exception") throw std::runtime_error("as the test wants it");
            if (request == "7") throw 7;
            return request;
          },
          reply);
    });
    Client other(server.address());
    for (const char* request : {"exception", "7"}) {
      Client client(server.address());
      client.send(request);
      CHECK(client.is_closed_within(patience));
      other.echo("still here");
      CHECK(unfinished_jobs(server) == 0);
    }
  });
}

TEST_CASE("job-finished: a reply is written: its job is finished") {
  holds([] {
    EventLoop* loop = nullptr;
    // The reply says how many jobs are unfinished. The worker gives way to the loop as soon as
    // the loop has the result, before it has left the job.
    LoopUnderTest server([&](Connection& conn) {
      conn.reader().skip(1);
      const int core = this_core();
      stay_on(core);
      conn.offload(
          [core] {
            stay_on(core);
            give_way();
            return std::string();
          },
          [&](Connection& again, std::string_view) {
            again.write(std::to_string(loop->unfinished_jobs()));
          });
    });
    server.run([&] { loop = &server.loop(); });
    Client client(server.address());
    for (int i = 0; i < 20; ++i) {
      client.send("#");
      CHECK(client.receive(1) == "0");
    }
  });
}

TEST_CASE("reply-to-closed: a connection is closed while its job runs: no other gets the reply") {
  holds([] {
    Gate gate;
    std::weak_ptr<Connection> asked;
    const auto on_request = jobs_at(gate);
    LoopUnderTest server([&](Connection& conn) {
      if (conn.reader().peek(1) == "#") asked = conn.weak_from_this();
      on_request(conn);
    });
    Client client(server.address());
    client.send("#secret");
    CHECK(gate.reached_by(1));
    server.run([&] { asked.lock()->close(); });
    CHECK(client.is_closed_within(patience));
    Client next(server.address());  // it gets the descriptor that is free now
    next.echo("hello");
    CHECK(unfinished_jobs(server) == 1);
    gate.open();
    CHECK(wait_until(patience, [&] { return unfinished_jobs(server) == 0; }));
    CHECK_FALSE(next.hears_within(100ms));
    next.echo("hello");
  });
}

TEST_CASE("short-queue: a queue of one, four workers: all four work") {
  holds([] {
    Gate gate;
    LoopUnderTest server(jobs_at(gate), 0ms, 4, 1);
    auto clients = connect_clients(server.address(), 8);
    server.run([&] {  // all come in one turn of the loop
      for (Client& client : clients) client.send("#");
    });
    CHECK(gate.reached_by(4));
    gate.open();
    for (Client& client : clients) CHECK(client.receive(1) == "#");
  });
}

TEST_CASE("finished-sending: a client has half-closed: it gets all replies, then the end") {
  holds([] {
    constexpr std::size_t kReply = 40'000;  // so little that the FIN is read with it
    constexpr std::size_t kRequests = 400;  // enough to fill the buffers
    std::atomic<int> jobs = 0;
    LoopUnderTest server([&](Connection& conn) {
      const bool last = conn.reader().next(1) == "z";
      conn.offload(
          [&jobs, last] {
            ++jobs;
            if (last) std::this_thread::sleep_for(100ms);  // until all other output has left
            return std::string(kReply, 'x');
          },
          reply);
    });
    Client client(server.address());
    client.send(std::string(kRequests - 1, 'a') + "z");
    client.finish_sending();
    int before = -1;
    CHECK(wait_until(patience, [&] {
      std::this_thread::sleep_for(100ms);
      return std::exchange(before, jobs.load()) == jobs;
    }));
    client.receive(kRequests * kReply);
    CHECK(client.is_closed_within(patience));
  });
}

TEST_CASE(
    "job-from-another: another connection's handler starts a job: the connection is not read "
    "meanwhile") {
  holds([] {
    Gate gate;
    std::weak_ptr<Connection> known;
    const auto on_request = jobs_at(gate);
    LoopUnderTest server(
        [&](Connection& conn) {
          if (conn.reader().peek(1) == "!") known = conn.weak_from_this();
          on_request(conn);
        },
        0ms, 1, 1);
    Client at_work(server.address());
    Client in_queue(server.address());
    at_work.send("#");
    in_queue.send("#");
    CHECK(gate.reached_by(1));
    Client client(server.address());
    client.echo("!");
    server.run([&] { known.lock()->offload([] { return std::string("job"); }, reply); });
    client.send("more");
    const std::clock_t before = std::clock();
    CHECK_FALSE(client.hears_within(300ms));
    CHECK(std::clock() - before < CLOCKS_PER_SEC / 10);  // it sleeps
    gate.open();
    CHECK(client.receive(7) == "jobmore");
  });
}

TEST_CASE("closed-not-handled: a connection is closed with bytes unread: they are not handled") {
  holds([] {
    std::atomic<int> calls = 0;
    LoopUnderTest server([&](Connection& conn) {
      ++calls;
      conn.reader().skip(1);
      conn.offload([] { return std::string(); },
                   [](Connection& again, std::string_view) { again.close(); });
    });
    Client client(server.address());
    client.send("ab");
    CHECK(client.is_closed_within(patience));
    server.run([] {});
    CHECK(calls == 1);
  });
}

TEST_CASE(
    "full-queue: the queue is full: a client with a slow request is not read, and is served "
    "later") {
  holds([] {
    Gate gate;
    LoopUnderTest server(jobs_at(gate), 0ms, 1, 1);
    // One request is worked on, one is in the queue, three wait for the queue.
    auto slow = connect_clients(server.address(), 5);
    slow.front().send("#");
    CHECK(gate.reached_by(1));
    for (std::size_t i = 1; i < 5; ++i) slow[i].send("#");
    Client quick(server.address());
    quick.echo("hello");
    // What the last client sends now is not read. It fills the buffers, and stops.
    const std::string flood(64 << 20, '#');
    const std::size_t sent = slow.back().send_what_fits(flood, 100ms);
    CHECK(sent < flood.size());
    quick.echo("hello");
    CHECK(gate.arrived() == 1);
    gate.open();
    for (Client& client : slow) CHECK(client.receive(1) == "#");
    CHECK(slow.back().receive(sent) == flood.substr(0, sent));
  });
}

TEST_CASE("full-queue-order: clients wait for the full queue: they are served in order") {
  holds([] {
    Gate gate;
    std::mutex mutex;
    std::string done;
    LoopUnderTest server(
        [&](Connection& conn) {
          std::string request(conn.reader().next(conn.reader().len()));
          conn.offload(
              [&, request] {
                gate.pass();
                const std::lock_guard lock(mutex);
                done += request;
                return request;
              },
              reply);
        },
        0ms, 1, 1);
    auto clients = connect_clients(server.address(), 6);
    for (std::size_t i = 0; i < clients.size(); ++i) {
      clients[i].send(std::string(1, "abcdef"[i]));
      server.run([] {});  // two turns of the loop later, the request waits for the queue
      server.run([] {});
    }
    gate.open();
    for (Client& client : clients) client.receive(1);
    CHECK(done == "abcdef");
  });
}

TEST_CASE("job-not-idle: --idle-timeout, a job is under way: its connection is not idle") {
  holds([] {
    Gate gate;
    LoopUnderTest server(jobs_at(gate), 100ms);
    Client client(server.address());
    client.send("#");
    CHECK_FALSE(client.is_closed_within(400ms));
    gate.open();
    CHECK(client.receive(1) == "#");
    CHECK(client.is_closed_within(patience));
  });
}

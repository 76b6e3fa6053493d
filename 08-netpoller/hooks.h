// Windows that are a few instructions wide, held open by tests.
//
// A race that needs an event between two instructions is not found by running often. The
// test's build of these sources (NETPOLLER_HOOKS) calls what a test has put at a window;
// in the server's build there is nothing there.
#pragma once

#ifdef NETPOLLER_HOOKS
#include <functional>

enum class Window {
  before_call,      // an operation is about to be tried
  after_call,       // it could not be done; nobody knows yet that it waits
  before_recheck,   // the waiter has said that it will wait, and has not looked again
  before_commit,    // the coroutine is suspended; nobody can find it yet
  before_report,    // the poller has an event, and has not looked what it is for
  after_report,     // it has told the PollDesc
  before_unlock,    // the last use of a descriptor is over
  before_deadline,  // the owner has been checked, and the deadline is not yet set
  before_idle,      // a worker has found nothing to do, and has told nobody
  before_sleep,     // a worker is about to sleep
  before_block,     // a worker is about to block in the poll
  after_unwatched,  // a sleeper has said that it keeps no watch, and has not yet looked once more
  count
};

// What each thread that comes by does there; nothing: no more.
void set_hook(Window window, std::function<void()> action);
void hook(Window window);
#define HOOK(window) hook(Window::window)
#else
#define HOOK(window) static_cast<void>(0)
#endif

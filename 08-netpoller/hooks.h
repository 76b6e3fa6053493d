// Windows that are a few instructions wide, held open by tests.
//
// A race that needs an event between two instructions is not found by running often. The
// test's build of these sources (NETPOLLER_HOOKS) calls what a test has put at a window;
// in the server's build there is nothing there.
#pragma once

#ifdef NETPOLLER_HOOKS
#include <functional>
#include <mutex>

enum class Window {
  before_call,     // a descriptor's readiness was reset; the system call follows
  before_recheck,  // a waiter has said that he will wait; he has not looked again
  before_commit,   // a coroutine is suspended; nobody can find it yet
  before_unlock,   // the last use of a descriptor is over
  before_sleep,    // a worker has found nothing, and is counted as idle
  before_block,    // a worker is about to block in the poll
};

// What is done at the window, by whoever comes by, once each time; empty: nothing.
void set_hook(Window window, std::function<void()> action);
void hook(Window window);
#define HOOK(window) hook(Window::window)
#else
#define HOOK(window) static_cast<void>(0)
#endif

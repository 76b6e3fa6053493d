// 04-epoll: all that the server is held to is in common/testing/chapter_test.cpp: the battery
// with ten thousand clients, then eighteen thousand; shutdown; many connections on one thread;
// what idle connections cost; and what happens when epoll_ctl fails.
#include "common/testing/chapter.h"

const Subject kServer{.command = {.argv = {SERVER}, .environment = {}}, .clients = 10'000};

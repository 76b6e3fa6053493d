// What a message costs a server, seen from outside.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <initializer_list>
#include <vector>

#include "common/testing/server_process.h"

// The middle one, or the mean of the middle two. At least one value.
double median(std::vector<double> values);

// Takes both measurements `pairs` times, in turns: a machine that slows down slows down
// both. Returns the median of the first, of the second, and of second / first.
std::array<double, 3> in_turns(std::size_t pairs, const std::function<double()>& first,
                               const std::function<double()>& second);

// What a message of `busy` clients costs, in microseconds, and what it costs beside
// `idle` more that say nothing: in_turns, each time of so many messages at least, on two
// servers of the same kind that share one processor with the clients.
struct Costs {
  double alone;
  double beside_idle;
  double ratio;  // the median of the pairs' ratios
};
Costs cost_beside_idle(const Command& command, std::size_t busy, std::size_t idle,
                       std::size_t messages, std::size_t pairs);

// Prints a table of that for one client that sends, a row for each number of idle ones.
void print_costs_beside_idle(const Command& command, std::initializer_list<std::size_t> idle);

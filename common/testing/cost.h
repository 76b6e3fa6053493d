// What a message costs a server, seen from outside.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <vector>

#include "common/testing/server_process.h"

// The middle one, or the mean of the middle two. At least one value.
double median(std::vector<double> values);

// What a message of `busy` clients costs, in microseconds, and what it costs beside
// `idle` more that say nothing: medians of `pairs` of measurements, each of so many
// messages at least, taken in turns on two servers of the same kind that run side by
// side, and on one processor with the clients. A machine that slows down slows down both.
struct Costs {
  double alone;
  double beside_idle;
  double ratio;  // the median of the pairs' ratios
};
Costs cost_beside_idle(const Command& command, std::size_t busy, std::size_t idle,
                       std::size_t messages, int pairs);

// Prints a table of that for one client that sends, a row for each number of idle ones.
void print_costs_beside_idle(const Command& command, std::initializer_list<std::size_t> idle);

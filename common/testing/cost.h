// What a message costs a server, seen from outside.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "common/testing/server_process.h"

// The middle value, or the mean of the middle two. Needs a value.
double median(std::vector<double> values);

struct Costs {
  double alone;
  double beside_idle;
  double ratio;  // the median of the pairs' ratios
};

// Takes two measurements in turns, `pairs` times: a machine that slows down slows down
// both. Returns their medians, and the median of second / first.
Costs in_turns(std::size_t pairs, const std::function<double()>& first,
               const std::function<double()>& second);

// Microseconds of CPU per message of `busy` clients, alone and beside `idle` silent ones.
// Measured in_turns, at least `messages` each time, on two servers of the same kind that
// share one processor with the clients.
Costs cost_beside_idle(const Command& command, std::size_t busy, std::size_t idle,
                       std::size_t messages, std::size_t pairs);

// Prints a row of a table of costs, under a head of 8, 14, 14 and 10 columns.
void print_costs(std::size_t count, double first, double second, double ratio);

// Prints a table of cost_beside_idle, a row for each number of idle clients.
void print_costs_beside_idle(const Command& command, const std::vector<std::size_t>& idle,
                             std::size_t busy = 1, std::size_t messages = 2'000,
                             std::size_t pairs = 11);

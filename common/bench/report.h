// How a load is asked for on a command line, and how its result is written.
#pragma once

#include <string>

#include "common/bench/load.h"
#include "common/bench/measure.h"
#include "common/socket/options.h"

// --clients, --rate and so on. The plan must outlive the options.
void add_flags(Options& options, LoadPlan& plan);

// What is wrong with the plan as a whole; empty if nothing is.
std::string what_is_wrong_with(const LoadPlan& plan);

// Lines that the next one replaces, on stderr, while it is a terminal. Ends by removing
// the last of them.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(const std::string& text) const;

 private:
  bool terminal_;
};

std::string as_text(const LoadPlan& plan, const LoadResult& result);

// One JSON object, with a newline at its end.
std::string as_json(const LoadPlan& plan, const LoadResult& result);
std::string as_json(const LoadPlan& plan, const Measurement& measurement);

// doctest's main, and one addition: tests that passed but skipped something end with
// the code in $SKIP_CODE, if there is one. CTest sets it, and reports them as skipped.
// A failure is a failure, whatever else was skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdlib>

#include "common/testing/holds.h"

int main(int argc, char** argv) {
  const int failed = doctest::Context(argc, argv).run();
  const char* skip_code = std::getenv("SKIP_CODE");  // NOLINT(concurrency-mt-unsafe)
  if (failed == 0 && skipped_something && skip_code != nullptr) return std::atoi(skip_code);
  return failed;
}

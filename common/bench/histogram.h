// A log-linear histogram, like HdrHistogram: any number of values in 30 KB. A quantile is
// at most 1/64 (1.6 %) too high, and never too low.
//
// Values below 64 have a bucket each. Above, each power of two is cut into 64 buckets,
// so a bucket is at most 1/64 as wide as its values are large.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

class Histogram {
 public:
  void record(std::uint64_t value) {
    ++counts_[bucket_of(value)];
    ++count_;
    max_ = std::max(max_, value);
  }

  void add(const Histogram& other) {
    for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    count_ += other.count_;
    max_ = std::max(max_, other.max_);
  }

  std::uint64_t count() const { return count_; }
  std::uint64_t max() const { return max_; }  // exact; 0 without values

  // The value that `share` (0 to 1) of all values do not exceed: the upper end of its
  // bucket, or the exact maximum. 0 without values.
  std::uint64_t quantile(double share) const {
    const double rank = std::max(1.0, std::ceil(share * static_cast<double>(count_)));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (static_cast<double>(seen) >= rank) return std::min(highest_of(i), max_);
    }
    return max_;
  }

 private:
  static constexpr std::size_t kParts = 64;  // of each power of two
  static constexpr int kPartBits = 6;

  // The right shift that brings a value below 2 * kParts.
  static int shift_of(std::uint64_t value) {
    return std::max(0, static_cast<int>(std::bit_width(value)) - kPartBits - 1);
  }

  static std::size_t bucket_of(std::uint64_t value) {
    const int shift = shift_of(value);
    return static_cast<std::size_t>(shift) * kParts + static_cast<std::size_t>(value >> shift);
  }

  static std::uint64_t highest_of(std::size_t bucket) {
    if (bucket < 2 * kParts) return bucket;
    const std::size_t shift = bucket / kParts - 1;
    // The last bucket ends at 2^64 - 1: the shift of its end wraps round to 0.
    return (std::uint64_t{bucket % kParts + kParts + 1} << shift) - 1;
  }

  std::array<std::uint64_t, (64 - kPartBits + 1)* kParts> counts_ = {};
  std::uint64_t count_ = 0;
  std::uint64_t max_ = 0;
};

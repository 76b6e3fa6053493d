// Counts the allocations of the test program, and can refuse them. In a file of its own: a
// compiler that inlines one half of a pair warns that it does not match the other.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

std::atomic<std::size_t> allocations = 0;
std::atomic<bool> no_memory = false;

// Weak: clang's ThreadSanitizer has its own.
[[gnu::weak]] void* operator new(std::size_t size) {
  ++allocations;
  if (no_memory) throw std::bad_alloc();
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::weak]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::weak]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

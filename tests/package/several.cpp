// A C++ program that trains on several GPUs, as far as a machine without one can tell.
#include <mamba/data_parallel.hpp>

#include <cstdio>

int main() {
  try {
    mamba::DataParallel({}).run([](mamba::Rank& rank) { rank.barrier(); });
  } catch (const mamba::ArgumentError& error) {
    std::printf("%s\n", error.what());
    return 0;
  }
  return 1;
}

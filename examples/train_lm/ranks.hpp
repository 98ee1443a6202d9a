// The devices that a run trains on, a thread and a rank for each.
#pragma once

#include <functional>
#include <vector>

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

// What a rank knows of the others, as mamba::Rank. This is a rank that is alone.
class Ranks {
 public:
  virtual ~Ranks() = default;
  virtual int index() const { return 0; }
  virtual int count() const { return 1; }
  virtual void all_reduce(const std::vector<mamba::TensorView>&, mamba::Stream&) {}
  virtual double all_reduce(double value) { return value; }
  virtual void barrier() {}
};

// work(ranks) on a thread for each device; the first error of any ends all of them. An Error in a
// build without mamba::data_parallel.
void on_several(const std::vector<mamba::Device>& devices, const std::function<void(Ranks&)>& work);

// The sampling options of the command line.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include <mamba/sampling.hpp>

class SamplingFlags {
 public:
  void add(CLI::App& app);

  // Greedy, unless any of the flags was given.
  mamba::SamplingOptions options() const;

  // A resumed generation keeps the options it was saved with. Throws if a flag that was given says
  // otherwise.
  void check_agree(const mamba::SamplingOptions& saved, const std::string& path) const;

 private:
  mamba::SamplingOptions given_;
  CLI::Option* temperature_ = nullptr;
  CLI::Option* top_k_ = nullptr;
  CLI::Option* top_p_ = nullptr;
  CLI::Option* min_p_ = nullptr;
  CLI::Option* repetition_penalty_ = nullptr;
  CLI::Option* seed_ = nullptr;
};

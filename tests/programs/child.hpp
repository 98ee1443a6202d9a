// A program as its user sees it: arguments in; standard output, standard error and an exit code
// out.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "testing.hpp"

// Where a program of the build lies. MAMBA_PROGRAM_DIR in the environment stands in for the build's
// folders, for tests that were carried to another machine: it holds all programs, and model/, the
// byte model that belongs beside them.
std::string place_of(const char* built);

struct Finished {
  int code = 0;  // as a shell sees it, but minus the signal if one killed it
  std::string out;
  std::string err;
};

class Child {
 public:
  // terminal: standard error is one; output_too: standard output is the same one, and what comes
  // there is in `err`. The pipe of standard output is small, so that a program that writes without
  // end waits for us soon.
  explicit Child(const std::vector<std::string>& arguments, bool terminal = false,
                 const std::string& program = place_of(MAMBA_LM), bool output_too = false);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void write(const std::string& text);  // to its standard input
  void close_input();                   // its end of file; finish() does it too

  // Until the program has written so much there (or has ended).
  void wait_for_output(std::size_t bytes);
  void wait_for_error(const std::string& text);
  void wait_to_end();                                        // until it has closed its output
  const std::string& output() const { return result_.out; }  // so far
  void close_output();                                       // nobody reads it any more
  void signal(int number);
  pid_t pid() const { return pid_; }
  Finished finish();

 private:
  bool read_some();  // false when both ends are closed
  void read_from(int& fd, std::string& to);

  // A program that goes on for ever must fail its test and not stop all tests.
  std::chrono::steady_clock::time_point deadline_ =
      std::chrono::steady_clock::now() + std::chrono::minutes(2);
  pid_t pid_ = -1;
  int in_ = -1;
  int out_ = -1;
  int err_ = -1;
  Finished result_;
};

inline Finished run(const std::vector<std::string>& arguments,
                    const std::string& program = place_of(MAMBA_LM)) {
  return Child(arguments, false, program).finish();
}

// Tests of a program that can run on any device.
class ProgramTest : public ::testing::Test {
 protected:
  // body() once for each device present, which on_ names meanwhile.
  template <class Body>
  void everywhere(Body body) {
    for (const mamba::Device device : mamba::testing::devices()) {
      SCOPED_TRACE(device.name());
      on_ = {"--device", device.name()};
      body();
    }
    on_.clear();
  }

  std::vector<std::string> on_;  // flags; none: where the program itself chooses to run
};

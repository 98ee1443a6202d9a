#include "interrupt.hpp"

#include <csignal>

namespace {

volatile std::sig_atomic_t flag = 0;

void raise_flag(int) { flag = 1; }

}  // namespace

void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = raise_flag;
  // A token being printed is printed whole; the second of a signal ends the program.
  action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // A reader of our output that goes away is a failed write, after which the state is still saved.
  std::signal(SIGPIPE, SIG_IGN);
}

bool interrupted() { return flag != 0; }

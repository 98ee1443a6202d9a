#include "interrupt.hpp"

#include <csignal>

namespace {

volatile std::sig_atomic_t flag = 0;

void raise_flag(int) { flag = 1; }

}  // namespace

void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = raise_flag;
  action.sa_flags = SA_RESTART;  // a token being printed is printed whole
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // A reader of our output that goes away is a failed write, after which the state is still saved.
  std::signal(SIGPIPE, SIG_IGN);
}

bool interrupted() { return flag != 0; }

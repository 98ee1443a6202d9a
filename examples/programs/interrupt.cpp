#include "interrupt.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

namespace {

volatile std::sig_atomic_t flag = 0;

int ends[2] = {-1, -1};  // of a pipe that nobody empties

void raise_flag(int) {
  const int kept = errno;
  flag = 1;
  [[maybe_unused]] const ssize_t written = write(ends[1], "!", 1);  // a full pipe is no loss
  errno = kept;
}

}  // namespace

void catch_interrupts() {
  if (ends[0] < 0 && pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) ends[0] = ends[1] = -1;
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

int interrupt_descriptor() { return ends[0]; }

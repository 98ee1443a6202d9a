#include "child.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

extern char** environ;

namespace {

struct Ends {
  int ours;
  int childs;
};

Ends make_pipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe2 failed");
  fcntl(ends[1], F_SETPIPE_SZ, 4096);
  return {ends[0], ends[1]};
}

// A socket, because a write to a program that has ended must not end us, as with a pipe.
Ends make_input() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    throw std::runtime_error("socketpair failed");
  }
  return {ends[0], ends[1]};
}

Ends make_terminal() {
  const int ours = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (ours < 0 || grantpt(ours) != 0 || unlockpt(ours) != 0) {
    throw std::runtime_error("no pseudo-terminal");
  }
  const int childs = open(ptsname(ours), O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (childs < 0) throw std::runtime_error("no pseudo-terminal");
  return {ours, childs};
}

}  // namespace

std::string place_of(const char* built) {
  const char* moved = std::getenv("MAMBA_PROGRAM_DIR");
  if (moved == nullptr) return built;
  return std::filesystem::path(moved) / std::filesystem::path(built).filename();
}

Child::Child(const std::vector<std::string>& arguments, bool terminal, const std::string& program,
             bool output_too) {
  const Ends in = make_input();
  const Ends out = make_pipe();
  const Ends err = terminal ? make_terminal() : make_pipe();
  in_ = in.ours;
  out_ = out.ours;
  err_ = err.ours;

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.childs, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output_too ? err.childs : out.childs, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err.childs, STDERR_FILENO);
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const int error = posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(in.childs);
  close(out.childs);
  close(err.childs);
  if (error != 0) throw std::runtime_error("cannot run " + program);
}

Child::~Child() {
  if (pid_ > 0) {  // a test gave up
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close_input();
  if (out_ >= 0) close(out_);
  if (err_ >= 0) close(err_);
}

void Child::read_from(int& fd, std::string& to) {
  char buffer[4096];
  const ssize_t count = read(fd, buffer, sizeof buffer);
  if (count > 0) {
    to.append(buffer, static_cast<std::size_t>(count));
  } else {  // the end; a terminal whose other side is closed says so with an error
    close(fd);
    fd = -1;
  }
}

bool Child::read_some() {
  if (out_ < 0 && err_ < 0) return false;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline_ - std::chrono::steady_clock::now());
  pollfd fds[] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};  // poll skips negative ones
  if (left.count() <= 0 || poll(fds, 2, static_cast<int>(left.count())) <= 0) {
    throw std::runtime_error("the program does not end");
  }
  if (fds[0].revents != 0) read_from(out_, result_.out);
  if (fds[1].revents != 0) read_from(err_, result_.err);
  return true;
}

void Child::write(const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = send(in_, text.data() + done, text.size() - done, MSG_NOSIGNAL);
    if (count <= 0) throw std::runtime_error("the program does not read");
    done += static_cast<std::size_t>(count);
  }
}

void Child::close_input() {
  if (in_ >= 0) close(in_);
  in_ = -1;
}

void Child::wait_for_output(std::size_t bytes) {
  while (result_.out.size() < bytes && read_some()) {
  }
}

void Child::wait_for_error(const std::string& text) {
  while (result_.err.find(text) == std::string::npos && read_some()) {
  }
}

void Child::wait_to_end() {
  while (read_some()) {
  }
}

void Child::close_output() {
  close(out_);
  out_ = -1;
}

void Child::signal(int number) { kill(pid_, number); }

Finished Child::finish() {
  close_input();
  wait_to_end();
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  result_.code = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
  return result_;
}

#include "program.hpp"

#include <cstdio>
#include <exception>
#include <new>
#include <string>

namespace {

// Whatever a message contains, an error is one line. Errors of a program without commands have its
// name already.
int report(const std::string& program, std::string message) {
  for (char& c : message) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  const std::string start = program + ": ";
  if (message.rfind(start, 0) != 0) message = start + message;
  std::fprintf(stderr, "%s\n", message.c_str());
  return exit_error;
}

}  // namespace

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const std::string name = app.get_name();
  try {
    app.parse(argc, argv);
    const int code = body();
    // Output to a full disk is no success.
    if (std::fflush(stdout) != 0) return report(name, "standard output cannot be written");
    return code;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return report(name, std::string(error.what()) + " (" + name + " --help tells more)");
  } catch (const std::bad_alloc&) {
    return report(name, "not enough memory");
  } catch (const std::exception& error) {
    return report(name, error.what());
  }
}

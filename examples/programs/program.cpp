#include "program.hpp"

#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include <mamba/version.hpp>

#include "output.hpp"

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

// An empty argument is most often a variable of a script that was not set; to take it for an absent
// one would begin a new text, or keep nothing, without a word.
void refuse_empty(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& value : option->results()) {
      if (!value.empty()) continue;
      throw CLI::ValidationError(option->get_name(), "expected a value, got an empty one");
    }
  }
  for (const CLI::App* command : app.get_subcommands()) refuse_empty(*command);
}

}  // namespace

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const std::string name = app.get_name();
  try {
    app.set_version_flag("--version", name + " " + mamba::version);
    app.parse(argc, argv);
    refuse_empty(app);
    const int code = body();
    write_output(name.c_str(), "");  // output to a full disk is no success
    return code;
  } catch (const OutputClosed&) {
    return exit_closed;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return report(name, std::string(error.what()) + " (" + name + " --help tells more)");
  } catch (const std::bad_alloc&) {
    return report(name, "not enough memory");
  } catch (const std::exception& error) {
    return report(name, error.what());
  }
}

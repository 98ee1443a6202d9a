// A request to mamba-server, behind its sockets: "METHOD TARGET\n", lines of "name: value", an
// empty line, the body. In the target @ stands for the id of a state that is there.
#include <memory>
#include <set>
#include <string>

#include "fuzz.hpp"
#include "server/core.hpp"
#include "server_model.hpp"

namespace {

struct Answer : server::Reply {
  int answers = 0;
  bool streams = false, ended = false;

  void send(server::Response response) override {
    static const std::set<int> known = {200, 201, 204, 304, 400, 401, 403, 404,
                                        405, 409, 413, 415, 422, 429, 503};
    ++answers;
    fuzz::expect(!streams && known.count(response.status) == 1);
    if (response.status >= 400) {
      const server::Json json = server::Json::parse(response.body, nullptr, false);
      fuzz::expect(json.is_object() && json["error"]["message"].is_string());
    }
  }
  void begin() override {
    fuzz::expect(!streams && answers == 0);
    streams = true;
  }
  void write(std::string) override { fuzz::expect(streams && !ended); }
  void end() override {
    fuzz::expect(streams && !ended);
    ended = true;
    ++answers;
  }
};

server::Request parse(const std::string& text, const std::string& id) {
  server::Request request;
  std::size_t at = 0;
  const auto line = [&] {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string one = text.substr(at, end - at);
    at = std::min(end + 1, text.size());
    return one;
  };
  const std::string first = line();
  const std::size_t space = std::min(first.find(' '), first.size());
  request.method = first.substr(0, space);
  request.target = first.substr(std::min(space + 1, first.size()));
  for (std::size_t place; (place = request.target.find('@')) != std::string::npos;) {
    request.target.replace(place, 1, id);
  }
  request.headers = {{"host", "localhost"}, {"content-type", "application/json"}};
  for (std::string header = line(); !header.empty(); header = line()) {
    const std::size_t colon = header.find(": ");
    if (colon != std::string::npos)
      request.headers[header.substr(0, colon)] = header.substr(colon + 2);
  }
  request.body = text.substr(at);
  return request;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const mamba::LanguageModel model = fuzz::server_model();
  static const mamba::Tokenizer tokenizer = mamba::Tokenizer::bytes();
  static mamba::Stream stream(mamba::Device::cpu(), 1);
  server::EngineOptions engine_options;
  engine_options.capacity = 2;
  engine_options.queue = 6;
  server::Engine engine(model, tokenizer, nullptr, stream, engine_options);
  server::StoreOptions store;
  store.bytes = 1 << 20;
  server::StateStore states(model, store);
  server::CoreOptions options;
  options.most_tokens = 3;
  options.chat.prompt.emplace(
      "{% for m in messages %}{{ m.role + ': ' + m['content'] }}\n{% endfor %}");
  server::Core core(
      engine, states, nullptr, [](const server::Work& work) { work(); }, options);
  mamba::Generator generator(model);
  generator.read({1, 2, 3});
  const std::string id =
      states
          .add(
              std::make_shared<server::KeptText>(server::KeptText{{1, 2, 3}, generator.snapshot()}),
              "")
          .id;

  const server::Request request = parse(fuzz::text_of(data, size), id);
  const auto answer = std::make_shared<Answer>();
  if (auto refused = core.refuse(request)) {
    answer->send(*std::move(refused));
  } else {
    core.handle(request, answer);
  }
  while (engine.step()) {
  }
  fuzz::expect(answer->answers == 1);
  fuzz::expect(engine.room() == engine_options.capacity);
  return 0;
}

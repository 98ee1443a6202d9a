// Writes what the fuzzers begin with: make_seeds FOLDER. A folder in it for each target.
#include <fstream>
#include <iterator>
#include <sstream>

#include <nlohmann/json.hpp>

#include <mamba/checkpoint.hpp>
#include <mamba/generator.hpp>
#include <mamba/loss.hpp>
#include <mamba/state_cache.hpp>
#include <mamba/state_file.hpp>

#include "fuzz.hpp"
#include "server_model.hpp"

namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class Seeds {
 public:
  explicit Seeds(fs::path folder) : folder_(std::move(folder)) {}

  // The path of the next seed of `target`.
  std::string next(const char* target) {
    fs::create_directories(folder_ / target);
    return (folder_ / target / std::to_string(number_++)).string();
  }
  void write(const char* target, const std::string& bytes) {
    fuzz::write_file(next(target), bytes);
  }

 private:
  fs::path folder_;
  int number_ = 0;
};

// Requests to mamba-server: see server_core_fuzz.cpp.
void make_requests(Seeds& seeds) {
  const std::string sampling =
      R"("max_tokens":3,"temperature":0.8,"top_p":0.9,"top_k":5,"min_p":0.1,"n":2,"seed":7,)"
      R"("repetition_penalty":1.1,"stop":["b"],"logit_bias":{"65":1.5},"ignore_eos":true)";
  const auto request = [&](const std::string& first, const std::string& body) {
    seeds.write("server_core_fuzz", first + "\n\n" + body);
  };
  request("POST /v1/completions",
          R"({"prompt":["a\ud83d","b"],"logprobs":2,"echo":true,)" + sampling + "}");
  request("POST /v1/completions", R"({"prompt":[1,2],"stream":true,"stream_options":)"
                                  R"({"include_usage":true},)" +
                                      sampling + "}");
  request("POST /v1/chat/completions",
          R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],)"
          R"("logprobs":true,"top_logprobs":1,)" +
              sampling + "}");
  request("POST /states", R"({"prompt":"a","from":null})");
  request("POST /states/@/generate", "{" + sampling + R"(,"stream":true})");
  request("POST /states/@/rewind", R"({"tokens":2})");
  for (const char* target : {"/states", "/states/@", "/states/@/content", "/states/@/text",
                             "/states/@/layers", "/states/@/map?layer=0", "/states/@/diff/@",
                             "/health", "/metrics", "/v1/models", "/openapi.json", "/"}) {
    request(std::string("GET ") + target, "");
  }
  request("DELETE /states/@", "");
  request("POST /tokenize", R"({"text":"a","special_tokens":false})");
  request("POST /detokenize", R"({"tokens":[195,169]})");
  const mamba::LanguageModel model = fuzz::server_model();
  mamba::Generator generator(model);
  generator.read({1, 2, 3});
  const mamba::Tensor path = mamba::Tensor::from<std::int32_t>({1, 2, 3});
  const mamba::Bytes state = generator.snapshot().save({{"path.ids", path}});
  seeds.write("server_core_fuzz",
              "PUT /states\ncontent-type: application/octet-stream\n\n" +
                  std::string(reinterpret_cast<const char*>(state.data()), state.size()));
  seeds.write("server_core_fuzz", "GET /health\norigin: https://a.example\nhost: b.example\n\n");
}

void make(Seeds& seeds) {
  const fs::path golden = MAMBA_GOLDEN_DIR;
  for (const char* name : {"base", "falcon", "gated", "original", "one"}) {
    const std::string config = read_file(golden / name / "config.json");
    seeds.write("config_fuzz", config);
    seeds.write("json_fuzz", config);
  }
  const std::string nul(1, '\0');
  const fs::path one = golden / "one";
  const std::string tensors = read_file(one / "model.safetensors");
  seeds.write("safetensors_fuzz", tensors);
  seeds.write("safetensors_fuzz", read_file(golden / "gru.safetensors"));
  seeds.write("model_folder_fuzz", read_file(one / "config.json") + nul + nul + tensors);
  const std::string index =
      R"({"weight_map":{"backbone.embeddings.weight":"a.safetensors"},"metadata":{}})";
  seeds.write("model_folder_fuzz", read_file(one / "config.json") + nul + index + nul + tensors);

  const mamba::LanguageModel model = mamba::LanguageModel::load(one.string());
  for (const std::int64_t rows : {1, 2}) {
    mamba::StateMetadata metadata;
    metadata.tokens_seen.assign(static_cast<std::size_t>(rows), 3);
    metadata.notes["a"] = "note";
    save(seeds.next("state_file_fuzz"), model.make_state(rows), metadata);
  }
  for (const float temperature : {0.0f, 0.8f}) {
    mamba::SamplingOptions options;
    options.temperature = temperature;
    mamba::Generator generator(model, options);
    generator.read({1, 2, 3});
    generator.next();
    generator.save(seeds.next("generation_fuzz"));
  }
  {
    const fuzz::MemoryFolder folder;
    mamba::CacheOptions options;
    options.host_bytes = 0;
    options.disk_bytes = 1 << 20;
    options.folder = folder.path();
    mamba::StateCache cache(model, options);
    mamba::Generator generator(model);
    cache.read(generator, {1, 2, 3});
    for (const auto& entry : fs::directory_iterator(folder.path())) {
      seeds.write("prefix_fuzz", read_file(entry.path()));
    }
    const mamba::Tensor ids = mamba::Tensor::from<std::int32_t>({1, 2, 3}, {3});
    const mamba::Tensor logits =
        mamba::Tensor::zeros({1, model.config().vocab_size}, mamba::DType::f32);
    save(seeds.next("prefix_fuzz"), model.make_state(1), {},  // as it was written before
         {{"prefix.ids", ids}, {"prefix.logits", logits}});
  }
  mamba::LanguageModel trained = mamba::LanguageModel::load(one.string());
  mamba::LanguageModelWeights gradients = zero_gradients(trained.config());
  const mamba::AdamW optimizer(parameters(trained, gradients));
  mamba::TrainingProgress progress;
  progress.positions = {1, 2};
  progress.notes["a"] = "note";
  save_training(seeds.next("training_fuzz"), optimizer, nullptr, progress);

  const std::string text =
      "In the beginning, e\xCC\x81 \xF0\x9F\x98\x80 \xFF<|endoftext|>it's  12\n";
  const auto tokenizer = nlohmann::json::parse(read_file(golden / "tokenizer" / "tokenizer.json"));
  std::istringstream pipelines(read_file(golden / "tokenizer" / "pipelines.txt"));
  for (std::string line; std::getline(pipelines, line);) {
    const std::string mark = "\\pipeline\t";
    if (line.rfind(mark, 0) != 0) continue;
    nlohmann::json other = tokenizer;
    other.update(nlohmann::json::parse(line.substr(mark.size())));
    seeds.write("tokenizer_fuzz", other.dump() + nul + text);
  }
  seeds.write("encode_fuzz", text);
  seeds.write("text_stream_fuzz", text);
  seeds.write("server_line_fuzz",
              R"({"id":[1,{"a":null}],"prompt":"a","max_tokens":5,"temperature":0.8,"seed":7,)"
              R"("top_k":0,"top_p":1,"min_p":0,"repetition_penalty":1.1,"stop":["b"],)"
              R"("ignore_eos":true})");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  Seeds seeds(argv[1]);
  make(seeds);
  make_requests(seeds);
}

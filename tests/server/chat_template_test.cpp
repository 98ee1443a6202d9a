// The part of Jinja that chat templates of published models are written in.
#include "server/chat_template.hpp"

#include <gmock/gmock.h>

#include "files.hpp"
#include "testing.hpp"

namespace server {
namespace {

using mamba::testing::TemporaryFolder;
using mamba::testing::write_file;
using ::testing::HasSubstr;

const Json talk = {{"messages", Json::array({{{"role", "system"}, {"content", " Be brief. "}},
                                             {{"role", "user"}, {"content", "Hi"}},
                                             {{"role", "assistant"}, {"content", "Hello"}}})},
                   {"add_generation_prompt", true},
                   {"bos_token", "<s>"}};

std::string rendered(const std::string& source) { return ChatTemplate(source).render(talk); }

TEST(ChatTemplateTest, RendersLoopsOverMessages) {
  EXPECT_EQ(rendered("{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}\n"
                     "{% endfor %}"),
            "<s>[system] Be brief. \n[user]Hi\n[assistant]Hello\n");
  EXPECT_EQ(rendered("{% for m in messages %}{{ loop.index0 }}{{ loop.index }}"
                     "{% if loop.first %}F{% elif loop.last %}L{% else %}-{% endif %}{% endfor %}"),
            "01F12-23L");
  EXPECT_EQ(rendered("{% for m in messages %}{% if m.role == 'user' and not loop.last or "
                     "loop.index0 % 2 == 0 %}{{ m.content|trim + '.' }}{% endif %}{% endfor %}"),
            "Be brief..Hi.Hello.");
  EXPECT_EQ(
      rendered("{% if messages[0]['role'] == 'system' %}{% set s = messages[0].content %}"
               "{{ s | trim | upper }}{% endif %}{{ messages | length }}{{ messages[-1].role }}"),
      "BE BRIEF.3assistant");
  EXPECT_EQ(rendered("{% if nothing is defined %}a{% endif %}{% if nothing is not defined %}b"
                     "{% endif %}{% if bos_token is defined and 's' in bos_token %}c{% endif %}"
                     "{% if 'x' not in bos_token %}d{% endif %}{{ 'it\\'s' ~ \"\\n\" }}"),
            "bcdit's\n");
}

// What a loop sets is gone after it, as in Jinja.
TEST(ChatTemplateTest, SetsWhereItStands) {
  EXPECT_EQ(rendered("{% set x = 'a' %}{% for m in messages %}{% set x = m.role %}{% endfor %}"
                     "{{ x }}"),
            "a");
}

TEST(ChatTemplateTest, WhiteSpaceIsWhatTransformersMakesOfIt) {
  EXPECT_EQ(rendered("{% for m in messages %}\n  {{ m.role }}\n{% endfor %}\nend"),
            "  system\n  user\n  assistant\nend");
  EXPECT_EQ(rendered("a\n  {%- if true %}  b  {%- endif %}  c"), "a  b  c");
  EXPECT_EQ(rendered("a\n  {% if true %}\nb\n  {% endif %}\nc"), "a\nb\nc");
  EXPECT_EQ(rendered("a {{- 'b' -}} c{# a {{ note }} #}d {# x #}\ne"), "abcd e");
  EXPECT_EQ(rendered("{ not a tag } {{ '{' }}"), "{ not a tag } {");
}

TEST(ChatTemplateTest, RefusesTheRestByName) {
  const auto refused = [](const std::string& source) {
    try {
      rendered(source);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  EXPECT_THAT(refused("{% macro x() %}{% endmacro %}"), HasSubstr("got {% macro %}"));
  EXPECT_THAT(refused("{{ messages | tojson }}"), HasSubstr("the filter tojson"));
  EXPECT_THAT(refused("{{ strftime_now('%d') }}"), HasSubstr("strftime_now()"));
  EXPECT_THAT(refused("{{ bos_token.split('x') }}"), HasSubstr(".split()"));
  EXPECT_THAT(refused("{{ messages[1:] }}"), HasSubstr("messages[1:]"));
  EXPECT_THAT(refused("{% for m in messages %}"), HasSubstr("no endfor"));
  EXPECT_THAT(refused("{% if true %}{% else %}{% elif true %}{% endif %}"),
              HasSubstr("after else"));
  EXPECT_THAT(refused("{{ 'a"), HasSubstr("without its end"));
  EXPECT_THAT(refused("{{ 'a }}"), HasSubstr("a text without an end"));
  EXPECT_THAT(refused("{{ " + std::string(100000, '(') + " }}"), HasSubstr("64 levels"));
  EXPECT_THAT(refused("{{ " + std::string(100000, '-') + "1 }}"), HasSubstr("64 levels"));
  std::string deep;
  for (int i = 0; i < 10000; ++i) deep += "{% if true %}";
  EXPECT_THAT(refused(deep), HasSubstr("32 levels"));
  EXPECT_THAT(refused("{{ raise_exception('roles must alternate') }}"),
              HasSubstr("must alternate"));
  EXPECT_THAT(refused("{{ nothing }}"), HasSubstr("expected a text, got null"));
  EXPECT_THAT(refused("{% for a in messages.x %}{% endfor %}"), HasSubstr("a list to go through"));
  EXPECT_THAT(refused("{{ 1 % 0 }}"), HasSubstr("by 1 and more"));
}

TEST(ChatTemplateTest, AFolderSaysWhichItIs) {
  const TemporaryFolder folder;
  EXPECT_EQ(load_chat(folder.path()).why_not, "none");
  write_file(folder.file("tokenizer_config.json"),
             R"({"bos_token": {"content": "<b>"}, "eos_token": "<e>", "chat_template": )"
             R"([{"name": "other", "template": "no"}, {"name": "default", "template": "yes"}]})");
  const Chat chat = load_chat(folder.path());
  ASSERT_TRUE(chat.prompt);
  EXPECT_EQ(chat.prompt->render(talk), "yes");
  EXPECT_EQ(chat.variables, Json({{"bos_token", "<b>"}, {"eos_token", "<e>"}}));
  write_file(folder.file("chat_template.jinja"), "{% macro a() %}");
  EXPECT_FALSE(load_chat(folder.path()).prompt);
  EXPECT_THAT(load_chat(folder.path()).why_not, HasSubstr("macro"));
  write_file(folder.file("tokenizer_config.json"), "{");
  write_file(folder.file("chat_template.jinja"), "new");
  EXPECT_EQ(load_chat(folder.path()).prompt->render(talk), "new");
}

}  // namespace
}  // namespace server

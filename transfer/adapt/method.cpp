#include "transfer/adapt/method.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/near_names.h"
#include "kernels/error.h"

namespace graft {
namespace {

double number_of(const std::string& method, const MethodOption& option) {
  double value = 0;
  const char *first = option.value.data(), *last = first + option.value.size();
  const auto [end, error] = std::from_chars(first, last, value);
  GRAFT_CHECK(error == std::errc() && end == last && std::isfinite(value), method, ": option ",
              option.name, ": expected a number, got \"", option.value, "\"");
  GRAFT_CHECK(value >= option.least && value <= option.most, method, ": option ", option.name,
              ": expected ", option.least, " to ", option.most, ", got ", option.value);
  GRAFT_CHECK(!option.odd || std::fmod(value, 2) == 1, method, ": option ", option.name,
              ": expected an odd number, got ", option.value);
  return value;
}

void check_value(const std::string& method, const MethodOption& option) {
  if (option.allowed.empty()) {
    number_of(method, option);
    return;
  }
  const auto& words = option.allowed;
  GRAFT_CHECK(std::find(words.begin(), words.end(), option.value) != words.end(), method,
              ": option ", option.name, ": expected one of ", words, ", got \"", option.value, "\"",
              did_you_mean(option.value, words));
}

}  // namespace

MethodSettings::MethodSettings(std::string method, std::vector<MethodOption> options,
                               const std::vector<std::string>& given)
    : method_(std::move(method)), options_(std::move(options)) {
  std::vector<std::string> known;
  for (const MethodOption& option : options_) known.push_back(option.name);
  for (const std::string& setting : given) {
    const size_t equals = setting.find('=');
    GRAFT_CHECK(equals != std::string::npos, method_, ": expected NAME=VALUE, got \"", setting,
                "\"");
    const std::string name = setting.substr(0, equals);
    const auto found = std::find(known.begin(), known.end(), name);
    if (found == known.end()) {
      std::string advice = did_you_mean(name, known);
      if (advice.empty()) {
        advice = known.empty() ? "; it has none" : text("; there are ", known);
      }
      fail(method_, ": there is no option \"", name, "\"", advice);
    }
    options_[static_cast<size_t>(found - known.begin())].value = setting.substr(equals + 1);
  }
  for (const MethodOption& option : options_) check_value(method_, option);
}

const MethodOption& MethodSettings::find(const std::string& name) const {
  for (const MethodOption& option : options_) {
    if (option.name == name) return option;
  }
  fail(method_, ": the method asks for an option \"", name, "\" that it does not declare");
}

double MethodSettings::number(const std::string& name) const {
  return number_of(method_, find(name));
}

int64_t MethodSettings::integer(const std::string& name) const {
  const double value = number(name);
  GRAFT_CHECK(value == std::floor(value), method_, ": option ", name,
              ": expected a whole number, got ", find(name).value);
  return static_cast<int64_t>(value);
}

bool MethodSettings::is(const std::string& name, const std::string& word) const {
  return find(name).value == word;
}

}  // namespace graft

// Plans as JSON: read leniently (what is left out comes from the options), written in full.
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "engine/near_names.h"
#include "kernels/error.h"
#include "transfer/plan.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

// A JSON object whose keys are all known; errors say where in which file.
class Object {
 public:
  Object(const Json& json, std::string where, const std::vector<std::string>& known)
      : json_(json), where_(std::move(where)) {
    GRAFT_CHECK(json.is_object(), where_, ": expected an object { ... }, got ", json.type_name());
    for (const auto& [key, value] : json.items()) {
      GRAFT_CHECK(std::find(known.begin(), known.end(), key) != known.end(), where_,
                  ": unknown key \"", key, "\"", did_you_mean(key, known), " (the keys are ", known,
                  ")");
    }
  }
  bool has(const char* key) const { return json_.contains(key); }
  const Json& at(const char* key) const {
    GRAFT_CHECK(has(key), where_, ": \"", key, "\" is missing");
    return json_[key];
  }
  std::string at_key(const char* key) const { return text(where_, ": \"", key, "\""); }

  void string(const char* key, std::string& value) const {
    if (!has(key)) return;
    GRAFT_CHECK(json_[key].is_string(), at_key(key), ": expected a text in quotes, got ",
                json_[key].dump());
    value = json_[key].get<std::string>();
  }
  void number(const char* key, double& value, double least, double most) const {
    if (!has(key)) return;
    GRAFT_CHECK(json_[key].is_number(), at_key(key), ": expected a number, got ",
                json_[key].dump());
    value = json_[key].get<double>();
    GRAFT_CHECK(value >= least && value <= most, at_key(key), ": expected ", least, " to ", most,
                ", got ", value);
  }
  void integer(const char* key, int64_t& value, int64_t least) const {
    if (!has(key)) return;
    GRAFT_CHECK(json_[key].is_number_integer() && json_[key].get<int64_t>() >= least, at_key(key),
                ": expected a whole number of at least ", least, ", got ", json_[key].dump());
    value = json_[key].get<int64_t>();
  }
  template <class E>
  void name(const char* key, E& value) const {
    if (!has(key)) return;
    std::string given;
    string(key, given);
    std::vector<std::string> known;
    for (const auto& [candidate, meaning] : names_of<E>()) {
      known.push_back(candidate);
      if (candidate == given) {
        value = meaning;
        return;
      }
    }
    fail(at_key(key), ": there is no \"", given, "\"", did_you_mean(given, known),
         " (the values are ", known, ")");
  }

 private:
  const Json& json_;
  std::string where_;
};

constexpr double kAny = 1e30;

Schedule read_schedule(const Json& json, const std::string& where, Schedule schedule) {
  // A name alone keeps the other parameters.
  const Json full = json.is_string() ? Json{{"kind", json}} : json;
  const Object object(full, where,
                      {"kind", "warmup", "rise", "div_factor", "final_div_factor", "gamma",
                       "step_part", "power", "ratio", "plateau_epochs", "alpha", "beta"});
  object.name("kind", schedule.kind);
  object.number("warmup", schedule.warmup, 0, 1);
  object.number("rise", schedule.rise, 0, 1);
  object.number("div_factor", schedule.div_factor, 1, kAny);
  object.number("final_div_factor", schedule.final_div_factor, 1, kAny);
  object.number("gamma", schedule.gamma, 0, 1);
  object.number("step_part", schedule.step_part, 1e-6, 1);
  object.number("power", schedule.power, 0, 100);
  object.number("ratio", schedule.ratio, 1, kAny);
  object.integer("plateau_epochs", schedule.plateau_epochs, 1);
  object.number("alpha", schedule.alpha, 0, kAny);
  object.number("beta", schedule.beta, 0, 100);
  return schedule;
}

// With the parameters that its kind reads.
Json to_json(const Schedule& s) {
  Json json{{"kind", to_name(s.kind)}};
  switch (s.kind) {
    case ScheduleKind::one_cycle:
      json["rise"] = s.rise;
      json["div_factor"] = s.div_factor;
      json["final_div_factor"] = s.final_div_factor;
      return json;
    case ScheduleKind::slanted_triangular:
      json["rise"] = s.rise;
      json["ratio"] = s.ratio;
      return json;
    case ScheduleKind::dann:
      json["alpha"] = s.alpha;
      json["beta"] = s.beta;
      return json;
    case ScheduleKind::step:
      json["gamma"] = s.gamma;
      json["step_part"] = s.step_part;
      break;
    case ScheduleKind::plateau:
      json["gamma"] = s.gamma;
      json["plateau_epochs"] = s.plateau_epochs;
      break;
    case ScheduleKind::polynomial:
      json["power"] = s.power;
      break;
    default:
      break;
  }
  json["warmup"] = s.warmup;
  return json;
}

LayerRule read_rule(const Json& json, const std::string& where) {
  const Object object(
      json, where, {"match", "freeze", "learning_rate", "weight_decay", "batch_norm", "dropout"});
  LayerRule rule;
  const Json& match = object.at("match");
  for (const Json& pattern : match.is_array() ? match : Json::array({match})) {
    GRAFT_CHECK(pattern.is_string() && !pattern.get<std::string>().empty(), object.at_key("match"),
                ": expected a name pattern or a list of them, got ", match.dump());
    rule.match.push_back(pattern.get<std::string>());
  }
  GRAFT_CHECK(!rule.match.empty(), object.at_key("match"), ": the list is empty");
  if (object.has("freeze")) {
    GRAFT_CHECK(object.at("freeze").is_boolean(), object.at_key("freeze"),
                ": expected true or false, got ", object.at("freeze").dump());
    rule.freeze = object.at("freeze").get<bool>();
  }
  const auto optional = [&](const char* key, std::optional<double>& value, double most) {
    if (object.has(key)) object.number(key, value.emplace(), 0, most);
  };
  optional("learning_rate", rule.learning_rate, kAny);
  optional("weight_decay", rule.weight_decay, kAny);
  optional("dropout", rule.dropout, 0.9999);
  if (object.has("batch_norm")) object.name("batch_norm", rule.batch_norm.emplace());
  return rule;
}

Json to_json(const LayerRule& rule) {
  Json json;
  json["match"] = rule.match.size() == 1 ? Json(rule.match.front()) : Json(rule.match);
  if (rule.freeze) json["freeze"] = *rule.freeze;
  if (rule.learning_rate) json["learning_rate"] = *rule.learning_rate;
  if (rule.weight_decay) json["weight_decay"] = *rule.weight_decay;
  if (rule.batch_norm) json["batch_norm"] = to_name(*rule.batch_norm);
  if (rule.dropout) json["dropout"] = *rule.dropout;
  return json;
}

Phase read_phase(const Json& json, const std::string& where, size_t index,
                 const FinetuneOptions& defaults) {
  const Object object(
      json, where,
      {"name", "epochs", "learning_rate", "weight_decay", "schedule", "batch_norm", "layers"});
  Phase phase;
  phase.name = text("phase ", index + 1);
  phase.epochs = defaults.epochs;
  phase.learning_rate = decimal(defaults.learning_rate);
  phase.weight_decay = decimal(defaults.weight_decay);
  phase.schedule = defaults.schedule;
  phase.batch_norm = defaults.batch_norm;
  object.string("name", phase.name);
  object.integer("epochs", phase.epochs, 1);
  object.number("learning_rate", phase.learning_rate, 0, kAny);
  object.number("weight_decay", phase.weight_decay, 0, kAny);
  object.name("batch_norm", phase.batch_norm);
  if (object.has("schedule")) {
    phase.schedule =
        read_schedule(object.at("schedule"), object.at_key("schedule"), phase.schedule);
  }
  if (!object.has("layers")) return phase;
  GRAFT_CHECK(object.at("layers").is_array(), object.at_key("layers"), ": expected a list [ ... ]");
  for (const Json& rule : object.at("layers")) {
    phase.layers.push_back(
        read_rule(rule, text(object.at_key("layers"), ", rule ", phase.layers.size() + 1)));
  }
  return phase;
}

}  // namespace

std::string to_json(const Plan& plan) {
  Json json;
  json["name"] = plan.name;
  json["architecture"] = plan.architecture;
  json["phases"] = Json::array();
  for (const Phase& phase : plan.phases) {
    Json entry;
    entry["name"] = phase.name;
    entry["epochs"] = phase.epochs;
    entry["learning_rate"] = phase.learning_rate;
    entry["weight_decay"] = phase.weight_decay;
    entry["schedule"] = to_json(phase.schedule);
    entry["batch_norm"] = to_name(phase.batch_norm);
    entry["layers"] = Json::array();
    for (const LayerRule& rule : phase.layers) entry["layers"].push_back(to_json(rule));
    json["phases"].push_back(std::move(entry));
  }
  return json.dump(2) + "\n";
}

Plan plan_from_json(const std::string& json, const std::string& source,
                    const FinetuneOptions& defaults) {
  Json parsed;
  try {
    parsed = Json::parse(json, nullptr, true, /*ignore_comments=*/true);
  } catch (const Json::parse_error& error) {
    fail(source, ": is not JSON: ", error.what());
  }
  const Object object(parsed, source, {"name", "architecture", "phases"});
  Plan plan;
  object.string("name", plan.name);
  object.string("architecture", plan.architecture);
  GRAFT_CHECK(object.at("phases").is_array() && !object.at("phases").empty(),
              object.at_key("phases"), ": expected a list of at least one phase");
  for (const Json& phase : object.at("phases")) {
    const size_t index = plan.phases.size();
    plan.phases.push_back(read_phase(phase, text(source, ": phase ", index + 1), index, defaults));
  }
  return plan;
}

Plan read_plan(const std::filesystem::path& file, const FinetuneOptions& defaults) {
  std::ifstream in(file, std::ios::binary);
  GRAFT_CHECK(in.good() && !std::filesystem::is_directory(file), file.string(),
              ": there is no such plan file");
  std::ostringstream all;
  all << in.rdbuf();
  return plan_from_json(all.str(), file.string(), defaults);
}

}  // namespace graft

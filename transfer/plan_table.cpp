// Plans for people: a row a layer, and what differs between two plans.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "layers/dropout.h"
#include "layers/norm.h"
#include "transfer/plan.h"
#include "transfer/presets.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

std::string shown(const Json& value) { return value.is_null() ? "none" : value.dump(); }

// A line for each leaf of two JSON values that differs; `where` leads to it.
void compare(const Json& before, const Json& after, const std::string& where,
             std::vector<std::string>& lines) {
  if (before == after) return;
  const auto inside = [&](const std::string& key) {
    return where.empty() ? key : where + ", " + key;
  };
  if (before.is_object() && after.is_object()) {
    Json keys = before;
    keys.update(after);
    for (const auto& [key, value] : keys.items()) {
      compare(before.value(key, Json()), after.value(key, Json()), inside(key), lines);
    }
  } else if (before.is_array() && after.is_array()) {
    for (size_t i = 0; i < std::max(before.size(), after.size()); ++i) {
      compare(i < before.size() ? before[i] : Json(), i < after.size() ? after[i] : Json(),
              text(where, " ", i + 1), lines);
    }
  } else {
    lines.push_back(text(where, ": ", shown(after), ", was ", shown(before)));
  }
}

std::string block_of(const LayerRow& row, const std::vector<Block>& blocks) {
  for (const Block& block : blocks) {
    for (const std::string& module : block.modules) {
      if (row.name == module || row.name.rfind(module + ".", 0) == 0) return block.name;
    }
  }
  return row.name;
}

}  // namespace

std::vector<LayerRow> layer_rows(ImageModel& model, const Phase& phase, OptimizerKind optimizer) {
  std::map<std::string, Module*> modules;
  for (const auto& [name, module] : model.named_modules()) modules[name] = module;
  const std::vector<Block> blocks = blocks_of(model);
  // A gradient, and momentum or AdamW's two moments.
  const int64_t floats_when_trained = optimizer == OptimizerKind::sgd ? 2 : 3;
  std::vector<LayerRow> rows;
  for (const NamedTensor& parameter : model.named_parameters()) {
    const std::string name = parameter.name.substr(0, parameter.name.rfind('.'));
    if (rows.empty() || rows.back().name != name) {
      LayerRow row;
      row.name = name;
      if (dynamic_cast<BatchNorm2d*>(modules.at(name)) != nullptr) {
        row.batch_norm = to_name(batch_norm_policy(phase, name));
      }
      rows.push_back(std::move(row));
      rows.back().block = block_of(rows.back(), blocks);
    }
    LayerRow& row = rows.back();
    const ParameterSetting setting = setting_of(phase, model, parameter);
    const int64_t values = parameter.tensor->numel();
    row.parameters += values;
    if (parameter.role == AdapterRole::adapter) row.adapter += values;
    row.bytes += 4 * values;
    if (!setting.trains) continue;
    row.trainable += values;
    row.bytes += 4 * values * floats_when_trained;
    row.learning_rate = std::max(row.learning_rate, setting.learning_rate);
    row.weight_decay = std::max(row.weight_decay, setting.weight_decay);
  }
  for (const LayerRule& rule : phase.layers) {
    if (!rule.dropout) continue;
    for (LayerRow& row : rows) {
      for (const std::string& pattern : rule.match) {
        if (matches(pattern, row.name)) row.dropout = rule.dropout;
      }
    }
  }
  return rows;
}

std::vector<LayerRow> block_rows(const std::vector<LayerRow>& layers) {
  const bool lora = std::any_of(layers.begin(), layers.end(),
                                [](const LayerRow& row) { return row.adapter > 0; });
  std::vector<LayerRow> rows;
  for (size_t begin = 0, end = 0; begin < layers.size(); begin = end) {
    std::string norm;
    bool agree = true;
    LayerRow sum = layers[begin];
    sum.name = sum.block;
    sum.parameters = sum.trainable = sum.adapter = sum.bytes = 0;
    for (end = begin; end < layers.size() && layers[end].block == layers[begin].block; ++end) {
      const LayerRow& row = layers[end];
      if (!row.batch_norm.empty()) {
        agree = agree && (norm.empty() || norm == row.batch_norm);
        norm = row.batch_norm;
      }
      // A frozen batch norm in a block that trains is the policy's, not the layer's, doing; and
      // beside adapters their layers are frozen.
      const bool policy = row.batch_norm == to_name(BatchNormPolicy::frozen_all) ||
                          (lora && row.trainable == row.adapter);
      agree = agree && row.dropout == sum.dropout &&
              (policy || row.trainable == 0 || row.trainable == row.parameters) &&
              (policy || (row.trainable > 0) == (layers[begin].trainable > 0)) &&
              (row.trainable == 0 || sum.trainable == 0 || row.learning_rate == sum.learning_rate);
      if (row.trainable > 0) sum.learning_rate = row.learning_rate;
      sum.parameters += row.parameters;
      sum.trainable += row.trainable;
      sum.adapter += row.adapter;
      sum.bytes += row.bytes;
      sum.weight_decay = std::max(sum.weight_decay, row.weight_decay);
    }
    sum.batch_norm = norm;
    if (agree) {
      rows.push_back(std::move(sum));
    } else {
      rows.insert(rows.end(), layers.begin() + static_cast<int64_t>(begin),
                  layers.begin() + static_cast<int64_t>(end));
    }
  }
  return rows;
}

std::vector<std::string> differences(const Plan& before, const Plan& after) {
  std::vector<std::string> lines;
  compare(Json::parse(to_json(before)), Json::parse(to_json(after)), "", lines);
  return lines;
}

}  // namespace graft

// graft inspect: what a weight file holds, without running anything in it.
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <optional>

#include "engine/io/weights.h"
#include "layers/models/delta.h"
#include "tools/command.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

// File names and metadata are somebody else's bytes: keep control characters off the terminal.
std::string printable(const std::string& raw, size_t most = 200) {
  std::string clean;
  for (const char c : raw) {
    if (clean.size() >= most) return clean + "...";
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      clean += c;
    } else {
      static constexpr char kDigits[] = "0123456789abcdef";
      clean += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return clean;
}

std::string size_text(size_t bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(bytes < 10'000'000 ? 2 : 1);
  if (bytes < 1000) return text(bytes, " B");
  if (bytes < 1'000'000) {
    out << static_cast<double>(bytes) / 1e3 << " kB";
  } else {
    out << static_cast<double>(bytes) / 1e6 << " MB";
  }
  return out.str();
}

// Storage -> the tensors that share it; only storages with more than one.
std::map<std::string, std::vector<std::string>> shared_storages(const WeightFile& file) {
  std::map<std::string, std::vector<std::string>> owners;
  for (const FileTensor& entry : file.tensors) {
    if (!entry.storage.empty()) owners[entry.storage].push_back(entry.name);
  }
  std::erase_if(owners, [](const auto& owner) { return owner.second.size() < 2; });
  return owners;
}

// What a delta file (layers/models/delta.h) is made of; nothing of other files, or damaged ones.
struct DeltaParts {
  DeltaCard card;
  int64_t adapters = 0, adapter_values = 0, tensors_in_full = 0, values_in_full = 0;
};
std::optional<DeltaParts> delta_parts(const WeightFile& file) {
  if (!is_delta(file)) return std::nullopt;
  DeltaParts parts;
  try {
    parts.card = delta_card_of(file);
  } catch (const Error&) {
    return std::nullopt;  // the metadata are shown as they are
  }
  for (const FileTensor& entry : file.tensors) {
    const bool a = entry.name.ends_with(".lora_A"), b = entry.name.ends_with(".lora_B");
    parts.adapters += a;
    parts.tensors_in_full += !a && !b;
    (a || b ? parts.adapter_values : parts.values_in_full) += entry.tensor.numel();
  }
  return parts;
}

void print_as_json(const std::string& path, const WeightFile& file) {
  Json tensors = Json::array();
  for (const FileTensor& entry : file.tensors) {
    Json row{{"name", entry.name},
             {"dtype", name_of(entry.tensor.dtype())},
             {"shape", entry.tensor.shape()},
             {"bytes", entry.tensor.bytes()}};
    if (!entry.storage.empty()) row["storage"] = entry.storage;
    tensors.push_back(std::move(row));
  }
  Json shared = Json::array();
  for (const auto& [storage, names] : shared_storages(file)) shared.push_back(names);
  Json all{{"file", path},       {"format", file.format},
           {"tensors", tensors}, {"metadata", file.metadata},
           {"shared", shared},   {"opaque", file.opaque},
           {"notes", file.notes}};
  if (const std::optional<DeltaParts> delta = delta_parts(file)) {
    all["delta"] = {{"rank", delta->card.lora.rank},
                    {"alpha", delta->card.lora.alpha},
                    {"base", delta->card.base},
                    {"base_sha256", delta->card.base_sha256},
                    {"adapted_layers", delta->adapters},
                    {"adapter_values", delta->adapter_values},
                    {"tensors_in_full", delta->tensors_in_full},
                    {"values_in_full", delta->values_in_full}};
  }
  print_json(all);
}

void print_for_people(const std::string& path, const WeightFile& file) {
  size_t bytes = 0, name_width = 4;
  int64_t values = 0;
  for (const FileTensor& entry : file.tensors) {
    bytes += entry.tensor.bytes();
    values += entry.tensor.numel();
    name_width = std::max(name_width, std::min<size_t>(60, printable(entry.name).size()));
  }
  std::cout << path << ": " << file.format << ", " << file.tensors.size() << " tensors, " << values
            << " values, " << size_text(bytes) << "\n";
  if (const std::optional<DeltaParts> delta = delta_parts(file)) {
    std::cout << "  what LoRA added to " << printable(delta->card.base) << ": adapters of rank "
              << delta->card.lora.rank << " beside " << delta->adapters << " layers ("
              << delta->adapter_values << " values), " << delta->tensors_in_full
              << " tensors in full (" << delta->values_in_full
              << " values)\n  a model again: graft "
              << "merge --weights BASE --delta " << printable(path) << " OUT.safetensors\n";
  }
  for (const auto& [key, value] : file.metadata) {
    std::cout << "  " << printable(key) << " = " << printable(value) << "\n";
  }
  for (const FileTensor& entry : file.tensors) {
    std::cout << "  " << std::left << std::setw(static_cast<int>(name_width))
              << printable(entry.name) << "  " << std::setw(5) << name_of(entry.tensor.dtype())
              << " " << std::setw(20) << text(entry.tensor.shape()) << std::right << std::setw(10)
              << size_text(entry.tensor.bytes()) << "\n";
  }
  for (const auto& [storage, names] : shared_storages(file)) {
    std::cout << "  one storage:";
    for (const std::string& name : names) std::cout << " " << printable(name);
    std::cout << "\n";
  }
  for (const std::string& item : file.opaque) {
    std::cout << "  not a tensor: " << printable(item) << "\n";
  }
  for (const std::string& note : file.notes) std::cout << "  note: " << printable(note) << "\n";
}

}  // namespace

void add_inspect(CLI::App& app) {
  struct Options {
    std::string file;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      add_command(app, "inspect", "Show what a weight file holds; runs nothing that is in it",
                  "graft inspect model.pth\n"
                  "graft inspect model.safetensors --json");
  command->add_option("FILE", options->file, "weight file")->required();
  add_json_option(*command, options->json);
  command->callback([options] {
    const WeightFile file = read_weights(options->file);
    options->json ? print_as_json(options->file, file) : print_for_people(options->file, file);
  });
}

}  // namespace graft

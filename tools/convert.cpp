// graft convert: a checkpoint of somebody else's into a file that graft opens.
#include "layers/models/convert.h"

#include <fstream>
#include <iostream>
#include <memory>

#include "tools/command.h"

namespace graft {
namespace {

struct ConvertFlags {
  std::string in, out, classes_file;
  ConvertOptions convert;
  bool force = false, json = false;
};

std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream file(path);
  GRAFT_CHECK(file.is_open(), path, ": cannot be read; check the path");
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

void run_convert(ConvertFlags options) {
  if (!options.classes_file.empty()) {
    options.convert.class_names = lines_of(options.classes_file);
  }
  const ConvertReport report =
      convert_file(options.in, options.out, options.convert, options.force);
  const ModelCard& card = report.card;
  if (options.json) {
    print_json({{"file", options.out},
                {"architecture", card.architecture},
                {"classes", card.classes},
                {"in_channels", card.in_channels},
                {"tensors", report.tensors},
                {"parameters", report.parameters},
                {"licence", card.licence},
                {"source_sha256", card.source_sha256},
                {"sha256", report.output_sha256},
                {"notes", report.notes}});
    return;
  }
  std::cout << options.out << "\n  architecture  " << card.architecture << ", " << card.classes
            << " classes\n  tensors       " << report.tensors << ", " << report.parameters
            << " parameters\n  licence       " << card.licence << "\n  source        "
            << card.source << " sha256 " << card.source_sha256 << "\n  written       sha256 "
            << report.output_sha256 << ", read back and compared\n";
  for (const std::string& note : report.notes) std::cout << "  note          " << note << "\n";
}

}  // namespace

void add_convert(CLI::App& app) {
  auto options = std::make_shared<ConvertFlags>();
  CLI::App* command = add_command(
      app, "convert", "Convert a PyTorch checkpoint to safetensors with a model card",
      "graft convert efficientnet-lite0.pth lite0.safetensors\n"
      "graft convert mine.pt mine.safetensors --arch resnet18 --classes names.txt --licence MIT");
  command->add_option("IN", options->in, "checkpoint: .pt, .pth, .bin or .safetensors")->required();
  command->add_option("OUT", options->out, "the file to write, ending in .safetensors")->required();
  command
      ->add_option("--arch", options->convert.architecture,
                   "architecture (default: recognised from the tensors)")
      ->check(known_architecture());
  command->add_option("--classes", options->classes_file,
                      "text file with one class name a line (default: ImageNet's for 1,000)");
  command->add_option("--licence,--license", options->convert.licence,
                      "licence of the weights, kept in the file");
  command->add_flag("--force", options->force, "replace OUT if it is there");
  add_json_option(*command, options->json);
  command->callback([options] {
    if (std::filesystem::path(options->out).extension() != ".safetensors") {
      throw UsageError(text("convert: OUT must end in .safetensors, got ", options->out));
    }
    run_convert(*options);
  });
}

}  // namespace graft
